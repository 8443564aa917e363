//! Definitions and bindings of small sources, case by case.

use super::link::{Evaluated, ModuleKind, Project};
use crate::source::summarize;
use std::sync::Arc;
use unstale_protocol::binding::{Label, Sends};
use unstale_protocol::ids::PythonVersion;
use unstale_protocol::value::Value;

fn evaluated(minor: u8, source: &str) -> Evaluated {
    let mut project = Project::new(PythonVersion::three(minor));
    project.insert("m", ModuleKind::Module, Arc::new(summarize(source).unwrap()));
    project.definitions("m")
}

/// Writes the last enum of a source as `NAME=value …`, aliases as `NAME->CANONICAL`, `?` for what is not known.
fn written(minor: u8, body: &str) -> String {
    let source = format!("import enum, functools, os\nfrom enum import *\nfrom django.db import models\n{body}\n");
    let found = evaluated(minor, &source);
    let Some(last) = found.enums.iter().max_by_key(|defined| defined.line) else { return "none".to_owned() };
    let value = |value: &Value| if value.is_known() { value.repr().replace('"', "") } else { "?".to_owned() };
    let members = last.definition.members.iter().map(|member| format!("{}={}", member.name, value(&member.value)));
    let aliases = last.definition.aliases.iter().map(|alias| format!("{}->{}", alias.name, alias.canonical));
    let mut parts: Vec<String> = members.chain(aliases).collect();
    if !last.members_known {
        parts.push("not known".to_owned());
    }
    parts.join(" ")
}

#[test]
fn members_and_values_follow_the_rules_of_the_version() {
    let check = |minor, body: &str, want: &str| assert_eq!(written(minor, body), want, "Python 3.{minor}:\n{body}");
    check(11, "class A(Enum):\n  X = 'x'\n  Y = 'x'", "X=x Y->X");
    check(11, "class A(str, Enum):\n  X = 'x',\n  Y = 1", "X=x Y=1");
    check(11, "class A(Enum):\n  X = 'x',", "X=(x,)");
    check(11, "class A(Enum):\n  X = auto()\n  Y = auto()", "X=1 Y=2");
    check(11, "class A(StrEnum):\n  XY = auto()", "XY=xy");
    check(10, "class A(Enum):\n  __p = 1\n  X = 2", "_A__p=1 X=2");
    check(11, "class A(Enum):\n  __p = 1\n  X = 2", "X=2");
    check(12, "class A(Enum):\n  X = 1\n  class B: pass", "X=1 B=?");
    check(13, "class A(Enum):\n  X = 1\n  class B: pass", "X=1");
    check(12, "class A(Enum):\n  X = functools.partial(int)", "X=?");
    check(13, "class A(Enum):\n  X = functools.partial(int)\n  Y = 1", "Y=1");
    check(10, "class A(IntEnum):\n  X = 5\n  Y = 1\n  Z = auto()", "X=5 Y=1 Z=2");
    check(11, "class A(IntEnum):\n  X = 5\n  Y = 1\n  Z = auto()", "X=5 Y=1 Z=6");
    check(10, "class A(Flag):\n  X = 4\n  Y = 1\n  Z = auto()", "X=4 Y=1 Z=2");
    check(11, "class A(Flag):\n  X = 4\n  Y = 1\n  Z = auto()", "X=4 Y=1 Z=8");
    check(11, "class A(Flag):\n  X = 1\n  Y = 2\n  XY = X | Y\n  ALSO = 3", "X=1 Y=2 XY=3 ALSO->XY");
    check(11, "class A(models.TextChoices):\n  X = 'x', _('X')\n  Y = auto()", "X=x Y=Y");
    check(11, "class A(models.IntegerChoices):\n  X = 1, 'X'\n  __empty__ = 'n'", "X=1");
    check(11, "A = Enum('A', 'X Y')", "X=1 Y=2");
    check(11, "A = Enum('A', {'X': 'x'}, type=str)", "X=x");
    check(11, "class A(Enum):\n  X = os.environ['X']\n  Y = 'y'", "X=? Y=y");
    check(11, "class A(Enum):\n  for i in 'ab': vars()[i] = i", "i=? not known");
    check(11, "class A(Enum):\n  X = 1\n  if X: Y = 2", "X=1 Y=2 not known");
    check(11, "class A(Enum):\n  def __new__(cls, v): pass\n  X = 1", "X=?");
    check(11, "class A(Enum):\n  def __init__(self, v, w): self._value_ = w\n  X = 1, 2", "X=?");
    check(11, "class A(Enum):\n  def __init__(self, v, w): self.w = w\n  X = 1, 2", "X=(1, 2)");
    check(11, "class A(Unknown, Enum):\n  X = 1", "X=?");
    check(11, "class A:\n  X = 1", "none");
}

#[test]
fn a_cycle_of_names_ends() {
    let source = "from enum import Enum\nA = B\nB = A\nclass E(Enum):\n    X = A\nclass C(D): pass\nclass D(C): pass\n";
    let found = evaluated(11, source);
    assert_eq!(found.enums.len(), 1);
    assert!(!found.enums[0].definition.members[0].value.is_known());
}

#[test]
fn modules_that_would_help_are_named() {
    let found =
        evaluated(11, "from enum import Enum\nfrom app.base import Base\nimport os, lib\nclass A(Base):\n    X = 1\n");
    assert_eq!(found.missing.into_iter().collect::<Vec<_>>(), ["app.base"]);
}

#[test]
fn columns_send_what_their_declaration_says() {
    let check = |column: &str, want: Result<(&str, &str, &str), ()>| {
        let source = format!(
            "import enum\nfrom typing import Optional\nfrom sqlalchemy import *\nfrom sqlalchemy import Enum\nfrom sqlalchemy.orm import *\n\
             class E(str, enum.Enum):\n    A = 'a'\n    B = 'b'\n\
             def values(e): return [m.value for m in e]\n\
             class T(Base):\n    __tablename__ = 't'\n    {column}\n"
        );
        let found = evaluated(11, &source);
        let text = found.bindings.first().map(|binding| {
            let labels: Vec<_> = binding.labels.iter().map(|label| label.text().unwrap_or("?")).collect();
            let sends = match &binding.sends {
                Some(Sends::Names) => "names",
                Some(Sends::Values) => "values",
                Some(Sends::Labels) => "labels",
                _ => "?",
            };
            (binding.column.column.clone(), sends.to_owned(), labels.join(" "))
        });
        let want = want.ok().map(|(name, sends, labels)| (name.to_owned(), sends.to_owned(), labels.to_owned()));
        assert_eq!(text, want, "{column}");
    };
    check("c = Column(Enum(E))", Ok(("c", "names", "A B")));
    check("c = Column('x', Enum(E))", Ok(("x", "names", "A B")));
    check("c = Column(Enum(E, values_callable=values))", Ok(("c", "values", "a b")));
    check("c = Column(Enum(E, values_callable=lambda e: [m.value for m in e]))", Ok(("c", "values", "a b")));
    check("c = Column(Enum(E, values_callable=lambda e: [m.name.lower() for m in e]))", Ok(("c", "values", "a b")));
    check("c = Column(Enum(E, values_callable=unknown))", Ok(("c", "?", "?")));
    check("c = Column(Enum('p', 'q', name='n'))", Ok(("c", "labels", "p q")));
    check("c = Column(Enum(*load(), name='n'))", Err(()));
    check("c: Mapped[E]", Ok(("c", "names", "A B")));
    check("c: 'Mapped[Optional[E]]'", Ok(("c", "names", "A B")));
    check("c: Mapped[E | None]", Ok(("c", "names", "A B")));
    check("c: Mapped[str]", Err(()));
    check("c = Column(String)", Err(()));
    check("c = relationship('E')", Err(()));
}

#[test]
fn classes_without_a_table_bind_nothing() {
    let source = "import enum\nfrom sqlalchemy import Column, Enum\nclass E(enum.Enum):\n    A = 'a'\n\
                  class Mixin:\n    c = Column(Enum(E))\nclass Abstract(Base):\n    __abstract__ = True\n    d = Column(Enum(E))\n\
                  class T(Mixin, Abstract):\n    __tablename__ = 't'\nclass Kid(T):\n    k = Column(Enum('x', name='k'))\n";
    let found = evaluated(11, source);
    let columns: Vec<_> = found.bindings.iter().map(|binding| binding.column.to_string()).collect();
    assert_eq!(columns, ["m:T.c", "m:T.d", "m:T.k"]);
    assert_eq!(found.bindings[2].labels, [Label::Text("x".into())]);
}
