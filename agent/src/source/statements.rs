//! Statements of ruff's syntax tree to [`Statement`]s, branches laid flat.

use super::Lines;
use super::expressions::{Lowering, operator};
use crate::python::ir::{Action, Branch, Class, Expr, Function, Lambda, MAX_CLASS_DEPTH, Statement, Summary, mangle};
use ruff_python_ast::{self as ast, Stmt};
use ruff_text_size::{Ranged, TextSize};

/// Deepest nesting of blocks that is followed.
const MAX_BLOCKS: usize = 40;

/// Methods that change a list, dict or set in place.
pub(crate) const MUTATORS: [&str; 14] = [
    "append",
    "extend",
    "insert",
    "remove",
    "pop",
    "clear",
    "sort",
    "reverse",
    "update",
    "setdefault",
    "popitem",
    "add",
    "discard",
    "__setitem__",
];

/// Lowers a module.
pub(super) fn lower(module: &ast::ModModule, lines: &Lines) -> Summary {
    let mut lowering = Statements { expressions: Lowering::default(), lines, classes: Vec::new() };
    let mut body = Vec::new();
    lowering.block(&module.body, Branch::Always, 0, &mut body);
    let incomplete = lowering.expressions.is_full().then(|| "the module is too large to follow".to_owned());
    Summary { body, incomplete }
}

struct Statements<'a> {
    expressions: Lowering,
    lines: &'a Lines,
    /// Names of the classes around the present statement.
    classes: Vec<String>,
}

impl Statements<'_> {
    fn class(&self) -> Option<String> {
        self.classes.last().cloned()
    }

    fn expr(&mut self, expr: &ast::Expr) -> Expr {
        let class = self.class();
        self.expressions.expr(expr, class.as_deref())
    }

    fn name(&self, name: &str) -> String {
        mangle(self.classes.last().map(String::as_str), name)
    }

    fn block(&mut self, block: &[Stmt], branch: Branch, depth: usize, out: &mut Vec<Statement>) {
        for statement in block {
            if self.expressions.is_full() {
                return;
            }
            self.expressions.count();
            self.statement(statement, branch, depth, out);
        }
    }

    fn push(&self, at: TextSize, branch: Branch, action: Action, out: &mut Vec<Statement>) {
        out.push(Statement { line: self.lines.line(at), branch, action });
    }

    fn statement(&mut self, statement: &Stmt, branch: Branch, depth: usize, out: &mut Vec<Statement>) {
        let at = statement.range().start();
        match statement {
            Stmt::Import(import) => {
                for name in &import.names {
                    let module = name.name.as_str().to_owned();
                    let alias = name.asname.as_ref().map(|alias| self.name(alias.as_str()));
                    self.push(at, branch, Action::Import { module, alias }, out);
                }
            }
            Stmt::ImportFrom(import) => {
                let names = import.names.iter().map(|name| {
                    let bound = name.asname.as_ref().unwrap_or(&name.name);
                    (name.name.as_str().to_owned(), self.name(bound.as_str()))
                });
                let action = Action::ImportFrom {
                    level: import.level,
                    module: import.module.as_ref().map_or_else(String::new, |module| module.as_str().to_owned()),
                    names: names.collect(),
                };
                self.push(at, branch, action, out);
            }
            Stmt::Assign(assign) => self.assign(assign, branch, out),
            Stmt::AugAssign(assign) => {
                if let ast::Expr::Name(name) = &*assign.target {
                    let name = self.name(name.id.as_str());
                    let operands = vec![Expr::Name(name.clone()), self.expr(&assign.value)];
                    let value = Expr::Operation(operator(assign.op), operands);
                    self.push(at, branch, Action::Assign { name, value }, out);
                } else {
                    self.changes(&assign.target, at, branch, out);
                }
            }
            Stmt::AnnAssign(assign) => {
                let ast::Expr::Name(name) = &*assign.target else {
                    return;
                };
                let name = self.name(name.id.as_str());
                if let Some(value) = &assign.value {
                    let value = self.expr(value);
                    self.push(at, branch, Action::Assign { name: name.clone(), value }, out);
                }
                if assign.simple {
                    let annotation = self.expr(&assign.annotation);
                    self.push(at, branch, Action::Annotate { name, annotation }, out);
                }
            }
            Stmt::ClassDef(class) => {
                let lowered = self.class_definition(class);
                self.push(class.name.range().start(), branch, lowered, out);
            }
            Stmt::FunctionDef(function) => {
                let lowered = self.function(function);
                self.push(function.name.range().start(), branch, Action::Function(lowered), out);
            }
            Stmt::Expr(expression) => self.lone_expression(&expression.value, at, branch, out),
            Stmt::Delete(delete) => {
                for target in &delete.targets {
                    match target {
                        ast::Expr::Name(_) => self.forget(target, "a deleted name", branch, out),
                        _ => self.changes(target, at, branch, out),
                    }
                }
            }
            Stmt::TypeAlias(alias) => self.forget(&alias.name, "a type alias", branch, out),
            _ if depth >= MAX_BLOCKS => {
                self.push(at, branch, Action::Opaque { why: "blocks nested too deeply".to_owned() }, out);
            }
            _ => self.compound(statement, branch, depth + 1, out),
        }
    }

    fn compound(&mut self, statement: &Stmt, branch: Branch, depth: usize, out: &mut Vec<Statement>) {
        let at = statement.range().start();
        let sometimes = Branch::Sometimes;
        match statement {
            Stmt::If(test) => {
                let (body, mut rest) = version_test(&test.test);
                self.block(&test.body, branch.within(body), depth, out);
                for clause in &test.elif_else_clauses {
                    let (body, next) = clause.test.as_ref().map_or((Branch::Always, sometimes), version_test);
                    self.block(&clause.body, branch.within(rest.within(body)), depth, out);
                    rest = rest.within(next);
                }
            }
            Stmt::Try(attempt) => {
                self.block(&attempt.body, sometimes, depth, out);
                for ast::ExceptHandler::ExceptHandler(handler) in &attempt.handlers {
                    if let Some(name) = &handler.name {
                        let action =
                            Action::Assign { name: self.name(name.as_str()), value: Expr::unresolved("an exception") };
                        self.push(at, sometimes, action, out);
                    }
                    self.block(&handler.body, sometimes, depth, out);
                }
                self.block(&attempt.orelse, sometimes, depth, out);
                self.block(&attempt.finalbody, sometimes, depth, out);
            }
            Stmt::With(with) => {
                for item in &with.items {
                    if let Some(target) = &item.optional_vars {
                        self.forget(target, "made by a with statement", sometimes, out);
                    }
                }
                self.block(&with.body, sometimes, depth, out);
            }
            Stmt::For(repeat) => {
                self.push(at, sometimes, Action::Opaque { why: "a loop".to_owned() }, out);
                self.forget(&repeat.target, "made by a loop", sometimes, out);
                self.block(&repeat.body, sometimes, depth, out);
                self.block(&repeat.orelse, sometimes, depth, out);
            }
            Stmt::While(repeat) => {
                self.push(at, sometimes, Action::Opaque { why: "a loop".to_owned() }, out);
                self.block(&repeat.body, sometimes, depth, out);
                self.block(&repeat.orelse, sometimes, depth, out);
            }
            Stmt::Match(choice) => {
                self.push(at, sometimes, Action::Opaque { why: "a match statement".to_owned() }, out);
                for case in &choice.cases {
                    self.block(&case.body, sometimes, depth, out);
                }
            }
            _ => {}
        }
    }

    fn assign(&mut self, assign: &ast::StmtAssign, branch: Branch, out: &mut Vec<Statement>) {
        let at = assign.range().start();
        // `A = B = auto()` makes one object: the second name stands for the first.
        let mut first: Option<String> = None;
        for target in &assign.targets {
            match target {
                ast::Expr::Name(name) => {
                    let name = self.name(name.id.as_str());
                    let value = match &first {
                        Some(first) => Expr::Name(first.clone()),
                        None => self.expr(&assign.value),
                    };
                    first.get_or_insert_with(|| name.clone());
                    self.push(at, branch, Action::Assign { name, value }, out);
                }
                ast::Expr::Tuple(ast::ExprTuple { elts, .. }) | ast::Expr::List(ast::ExprList { elts, .. }) => {
                    self.unpack(elts, &assign.value, branch, out);
                }
                _ => self.changes(target, at, branch, out),
            }
        }
    }

    /// `A, B = "a", "b"`; a swap reads what it also writes, so names on the right are not followed.
    fn unpack(&mut self, targets: &[ast::Expr], value: &ast::Expr, branch: Branch, out: &mut Vec<Statement>) {
        let values: &[ast::Expr] = match value {
            ast::Expr::Tuple(tuple) => &tuple.elts,
            ast::Expr::List(list) => &list.elts,
            _ => &[],
        };
        let plain = values.len() == targets.len()
            && values.iter().all(ast::Expr::is_literal_expr)
            && targets.iter().all(ast::Expr::is_name_expr);
        if !plain {
            for target in targets {
                self.forget(target, "unpacked from an expression", branch, out);
            }
            return;
        }
        for (target, value) in targets.iter().zip(values) {
            if let ast::Expr::Name(name) = target {
                let name = self.name(name.id.as_str());
                let value = self.expr(value);
                self.push(target.range().start(), branch, Action::Assign { name, value }, out);
            }
        }
    }

    /// Binds every name in `target` to something unknown.
    fn forget(&self, target: &ast::Expr, why: &str, branch: Branch, out: &mut Vec<Statement>) {
        let mut targets = vec![target];
        while let Some(target) = targets.pop() {
            match target {
                ast::Expr::Name(name) => {
                    let action = Action::Assign { name: self.name(name.id.as_str()), value: Expr::unresolved(why) };
                    self.push(target.range().start(), branch, action, out);
                }
                ast::Expr::Tuple(tuple) => targets.extend(tuple.elts.iter().rev()),
                ast::Expr::List(list) => targets.extend(list.elts.iter().rev()),
                ast::Expr::Starred(starred) => targets.push(&starred.value),
                _ => {}
            }
        }
    }

    /// `name[…] = …` changes what `name` holds; in a class body any other target may be `vars()[…]`.
    fn changes(&self, target: &ast::Expr, at: TextSize, branch: Branch, out: &mut Vec<Statement>) {
        let ast::Expr::Subscript(subscript) = target else {
            return;
        };
        match &*subscript.value {
            ast::Expr::Name(name) => {
                let action = Action::Assign {
                    name: self.name(name.id.as_str()),
                    value: Expr::unresolved("changed after it was made"),
                };
                self.push(at, branch, action, out);
            }
            _ if !self.classes.is_empty() => {
                self.push(at, branch, Action::Opaque { why: "assigns items".to_owned() }, out);
            }
            _ => {}
        }
    }

    fn lone_expression(&self, expr: &ast::Expr, at: TextSize, branch: Branch, out: &mut Vec<Statement>) {
        let ast::Expr::Call(call) = expr else { return };
        if let ast::Expr::Attribute(method) = &*call.func
            && let ast::Expr::Name(name) = &*method.value
            && MUTATORS.contains(&method.attr.as_str())
        {
            let action = Action::Assign {
                name: self.name(name.id.as_str()),
                value: Expr::unresolved("changed after it was made"),
            };
            self.push(at, branch, action, out);
        } else if !self.classes.is_empty() {
            self.push(at, branch, Action::Opaque { why: "calls a function".to_owned() }, out);
        }
    }

    fn class_definition(&mut self, class: &ast::StmtClassDef) -> Action {
        if self.classes.len() >= MAX_CLASS_DEPTH {
            return Action::Opaque { why: "classes nested too deeply".to_owned() };
        }
        let around = self.class();
        let around = around.as_deref();
        let bases = class.bases().iter().map(|base| self.expressions.expr(base, around)).collect();
        let keywords = self.expressions.keywords(class.keywords(), around);
        let decorators = self.decorators(&class.decorator_list);
        let mut body = Vec::new();
        self.classes.push(class.name.as_str().to_owned());
        self.block(&class.body, Branch::Always, 0, &mut body);
        self.classes.pop();
        Action::Class(Class { name: mangle(around, class.name.as_str()), bases, keywords, decorators, body })
    }

    fn decorators(&mut self, list: &[ast::Decorator]) -> Vec<Expr> {
        list.iter().map(|decorator| self.expr(&decorator.expression)).collect()
    }

    fn function(&mut self, function: &ast::StmtFunctionDef) -> Function {
        let class = self.class();
        let class = class.as_deref();
        let decorators = self.decorators(&function.decorator_list);
        let parameters = self.expressions.parameters(&function.parameters, class);
        let body = match function.body.as_slice() {
            [Stmt::Expr(text), rest @ ..] if text.value.is_string_literal_expr() => rest,
            body => body,
        };
        let returns = match body {
            [Stmt::Return(ast::StmtReturn { value: Some(value), .. })] if !function.is_async => {
                self.expressions.expr(value, class)
            }
            _ => Expr::unresolved(format!("calls {}, which does more than return", function.name.as_str())),
        };
        Function {
            name: mangle(class, function.name.as_str()),
            decorators,
            lambda: Lambda { parameters, returns },
            assigns_value: assigns_value(body, 0),
        }
    }
}

fn assigns_value(block: &[Stmt], depth: usize) -> bool {
    let is_value =
        |target: &ast::Expr| matches!(target, ast::Expr::Attribute(attribute) if attribute.attr.as_str() == "_value_");
    depth < MAX_BLOCKS
        && block.iter().any(|statement| match statement {
            Stmt::Assign(assign) => assign.targets.iter().any(is_value),
            Stmt::AnnAssign(assign) => is_value(&assign.target),
            Stmt::AugAssign(assign) => is_value(&assign.target),
            Stmt::If(test) => {
                assigns_value(&test.body, depth + 1)
                    || test.elif_else_clauses.iter().any(|clause| assigns_value(&clause.body, depth + 1))
            }
            Stmt::For(repeat) => assigns_value(&repeat.body, depth + 1),
            Stmt::While(repeat) => assigns_value(&repeat.body, depth + 1),
            Stmt::With(with) => assigns_value(&with.body, depth + 1),
            Stmt::Try(attempt) => {
                assigns_value(&attempt.body, depth + 1)
                    || assigns_value(&attempt.orelse, depth + 1)
                    || assigns_value(&attempt.finalbody, depth + 1)
                    || attempt
                        .handlers
                        .iter()
                        .any(|ast::ExceptHandler::ExceptHandler(handler)| assigns_value(&handler.body, depth + 1))
            }
            _ => false,
        })
}

/// Reads `sys.version_info >= (3, 11)`: the marks of the body and of what follows `else`.
fn version_test(test: &ast::Expr) -> (Branch, Branch) {
    let unknown = (Branch::Sometimes, Branch::Sometimes);
    let ast::Expr::Compare(compare) = test else {
        return unknown;
    };
    let ([operator], [right]) = (&*compare.ops, &*compare.comparators) else {
        return unknown;
    };
    let left = match &*compare.left {
        ast::Expr::Subscript(subscript) if subscript.slice.is_slice_expr() => &*subscript.value,
        other => other,
    };
    let ast::Expr::Attribute(attribute) = left else {
        return unknown;
    };
    let is_version = attribute.attr.as_str() == "version_info"
        && matches!(&*attribute.value, ast::Expr::Name(name) if name.id.as_str() == "sys");
    let ast::Expr::Tuple(tuple) = right else {
        return unknown;
    };
    let numbers: Vec<Option<u8>> = tuple
        .elts
        .iter()
        .map(|number| match number {
            ast::Expr::NumberLiteral(ast::ExprNumberLiteral { value: ast::Number::Int(number), .. }) => number.as_u8(),
            _ => None,
        })
        .collect();
    let ([Some(3), Some(minor)], true) = (numbers.as_slice(), is_version) else {
        return unknown;
    };
    let from = Branch::Python { since: *minor, below: u8::MAX };
    let before = Branch::Python { since: 0, below: *minor };
    match operator {
        ast::CmpOp::GtE => (from, before),
        ast::CmpOp::Lt => (before, from),
        _ => unknown,
    }
}
