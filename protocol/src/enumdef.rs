//! Definitions: the ordered members of an enum, and how two of them compare.

use crate::fingerprint::{Fingerprint, Form, ValueDigest};
use crate::value::{Same, Value};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A canonical member: a name in `__members__` whose member bears that name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// What `.value` returns.
    pub value: Value,
}

/// A second name of a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alias {
    /// The second name.
    pub name: String,
    /// The name that the member bears.
    pub canonical: String,
}

/// The definition of one enum as one layer has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnumDef {
    /// Canonical members in definition order, composite flags included.
    pub members: Vec<Member>,
    /// Every other name.
    #[serde(default)]
    pub aliases: Vec<Alias>,
}

/// What is known of one value in an [`Outline`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mark(pub Option<ValueDigest>);

/// A definition with its values as digests: what travels, and what is compared across hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outline {
    /// Canonical names in order, each with its value's digest or `null` where that is not known.
    pub members: Vec<(String, Mark)>,
    /// Aliases by name, each with its canonical name; a list of pairs on the wire.
    #[serde(default, with = "pairs", skip_serializing_if = "BTreeMap::is_empty")]
    pub aliases: BTreeMap<String, String>,
}

/// One way in which a loaded definition differs from the wanted one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Difference {
    /// The wanted definition has a member that the loaded one lacks.
    Missing {
        /// The member's name.
        name: String,
    },
    /// The loaded definition has a member that is no longer wanted.
    Extra {
        /// The member's name.
        name: String,
    },
    /// A member has another value.
    Value {
        /// The member's name.
        name: String,
    },
    /// The same members stand in another order.
    Order,
    /// An alias is missing, extra or points elsewhere.
    Alias {
        /// The alias.
        name: String,
    },
}

/// The answer of a comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// What is proven to differ; empty where nothing is.
    pub differences: Vec<Difference>,
    /// Names of members whose values could not be compared.
    pub undecided: Vec<String>,
}

impl Comparison {
    /// Tells whether the two are proven to differ.
    pub fn is_different(&self) -> bool {
        !self.differences.is_empty()
    }

    /// Tells whether the two are equal as far as they are known.
    pub fn is_equal(&self) -> bool {
        self.differences.is_empty()
    }
}

impl EnumDef {
    /// Returns the definition with its values as digests.
    pub fn outline(&self) -> Outline {
        Outline {
            members: self
                .members
                .iter()
                .map(|member| (member.name.clone(), Mark(ValueDigest::of(&member.value))))
                .collect(),
            aliases: self.aliases.iter().map(|alias| (alias.name.clone(), alias.canonical.clone())).collect(),
        }
    }

    /// Returns the digest of the canonical form.
    pub fn fingerprint(&self) -> Fingerprint {
        self.outline().fingerprint()
    }

    /// Returns the value of the canonical member `name`.
    pub fn value(&self, name: &str) -> Option<&Value> {
        self.members.iter().find(|member| member.name == name).map(|member| &member.value)
    }

    /// Compares the definition that is wanted (`self`) with one that is loaded.
    ///
    /// Values that either side does not know are compared by name only.
    pub fn compare(&self, loaded: &Self) -> Comparison {
        let (wanted, other) = (self.outline(), loaded.outline());
        wanted.compare_by(&other, |name| match (self.value(name), loaded.value(name)) {
            (Some(ours), Some(theirs)) => ours.same(theirs),
            _ => Same::Undecided,
        })
    }
}

impl Outline {
    /// Returns the digest of the canonical form.
    pub fn fingerprint(&self) -> Fingerprint {
        let mut form = Form::new("unstale/enum/1");
        self.write(&mut form);
        form.digest()
    }

    pub(crate) fn write(&self, form: &mut Form) {
        form.count(self.members.len());
        for (name, mark) in &self.members {
            form.text(name);
            match mark.0 {
                Some(digest) => {
                    form.byte(1);
                    form.raw(&digest.0);
                }
                None => form.byte(0),
            }
        }
        form.count(self.aliases.len());
        for (name, canonical) in &self.aliases {
            form.text(name);
            form.text(canonical);
        }
    }

    /// Returns what is known of the value of the canonical member `name`.
    pub fn mark(&self, name: &str) -> Option<Mark> {
        self.members.iter().find(|(member, _)| member == name).map(|(_, mark)| *mark)
    }

    /// Compares the outline that is wanted (`self`) with one that is loaded.
    pub fn compare(&self, loaded: &Self) -> Comparison {
        self.compare_by(loaded, |name| match (self.mark(name), loaded.mark(name)) {
            (Some(Mark(Some(ours))), Some(Mark(Some(theirs)))) if ours == theirs => Same::Yes,
            (Some(Mark(Some(_))), Some(Mark(Some(_)))) => Same::No,
            _ => Same::Undecided,
        })
    }

    fn compare_by(&self, loaded: &Self, same: impl Fn(&str) -> Same) -> Comparison {
        let mut differences = Vec::new();
        let mut undecided = Vec::new();
        // A value that is not known may equal an earlier one, which makes its name an alias where it is loaded.
        let may_be_alias = |name: &str| {
            let is_unknown = |name: &str| self.mark(name).is_some_and(|mark| mark.0.is_none());
            self.mark(name).is_some()
                && loaded.aliases.get(name).is_some_and(|canonical| is_unknown(name) || is_unknown(canonical))
        };
        for (name, _) in &self.members {
            if may_be_alias(name) {
                undecided.push(name.clone());
                continue;
            }
            if loaded.mark(name).is_none() {
                differences.push(Difference::Missing { name: name.clone() });
                continue;
            }
            match same(name) {
                Same::Yes => {}
                Same::No => differences.push(Difference::Value { name: name.clone() }),
                Same::Undecided => undecided.push(name.clone()),
            }
        }
        for (name, _) in &loaded.members {
            if self.mark(name).is_none() {
                differences.push(Difference::Extra { name: name.clone() });
            }
        }
        let only_order_is_left = !differences
            .iter()
            .any(|difference| matches!(difference, Difference::Missing { .. } | Difference::Extra { .. }));
        let ours = self.members.iter().map(|(name, _)| name).filter(|name| !may_be_alias(name));
        if only_order_is_left && !ours.eq(loaded.members.iter().map(|(name, _)| name)) {
            differences.push(Difference::Order);
        }
        let names = self.aliases.keys().chain(loaded.aliases.keys().filter(|name| !self.aliases.contains_key(*name)));
        for name in names {
            if self.aliases.get(name) != loaded.aliases.get(name) && !may_be_alias(name) {
                differences.push(Difference::Alias { name: name.clone() });
            }
        }
        Comparison { differences, undecided }
    }
}

/// A map as a list of pairs, as the manifest writes it.
mod pairs {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::collections::BTreeMap;

    pub(super) fn serialize<S: Serializer>(map: &BTreeMap<String, String>, serializer: S) -> Result<S::Ok, S::Error> {
        map.iter().collect::<Vec<_>>().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<String, String>, D::Error> {
        Ok(Vec::<(String, String)>::deserialize(deserializer)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn def(members: &[(&str, &str)]) -> EnumDef {
        let members =
            members.iter().map(|(name, value)| Member { name: (*name).into(), value: Value::str(*value) }).collect();
        EnumDef { members, aliases: vec![] }
    }

    #[test]
    fn a_change_of_case_is_a_difference() {
        let comparison = def(&[("HUBSPOT", "hubspot")]).compare(&def(&[("HUBSPOT", "HUBSPOT")]));
        assert_eq!(comparison.differences, [Difference::Value { name: "HUBSPOT".into() }]);
    }

    #[test]
    fn order_counts_only_among_equal_members() {
        let comparison = def(&[("A", "a"), ("B", "b")]).compare(&def(&[("B", "b"), ("A", "a")]));
        assert_eq!(comparison.differences, [Difference::Order]);
        let comparison = def(&[("A", "a"), ("B", "b")]).compare(&def(&[("B", "b")]));
        assert_eq!(comparison.differences, [Difference::Missing { name: "A".into() }]);
    }

    #[test]
    fn unresolved_values_are_compared_by_name() {
        let mut wanted = def(&[("A", "a"), ("B", "b")]);
        wanted.members[0].value = Value::unresolved("calls f");
        let comparison = wanted.compare(&def(&[("A", "whatever"), ("B", "b")]));
        assert!(comparison.is_equal());
        assert_eq!(comparison.undecided, ["A"]);
        assert!(wanted.compare(&def(&[("A", "x"), ("B", "c")])).is_different());
    }

    #[test]
    fn a_member_of_unknown_value_may_be_an_alias_where_it_is_loaded() {
        let mut wanted = def(&[("A", "a"), ("B", "b"), ("C", "c")]);
        let mut loaded = def(&[("A", "a"), ("C", "c")]);
        loaded.aliases.push(Alias { name: "B".into(), canonical: "A".into() });
        assert!(wanted.compare(&loaded).is_different());
        wanted.members[1].value = Value::unresolved("calls f");
        let comparison = wanted.compare(&loaded);
        assert_eq!((comparison.differences, comparison.undecided), (vec![], vec!["B".to_owned()]));
        wanted.members[1].value = Value::str("b");
        wanted.members[0].value = Value::unresolved("calls f");
        assert!(wanted.compare(&loaded).is_equal());
    }

    #[test]
    fn comparing_outlines_agrees_with_comparing_definitions() {
        let (a, b) = (def(&[("A", "a"), ("B", "b")]), def(&[("A", "A"), ("C", "c")]));
        assert_eq!(a.compare(&b), a.outline().compare(&b.outline()));
    }

    #[test]
    fn aliases_are_compared_apart_from_members() {
        let mut wanted = def(&[("RED", "red")]);
        let loaded = wanted.clone();
        wanted.aliases.push(Alias { name: "CRIMSON".into(), canonical: "RED".into() });
        assert_eq!(wanted.compare(&loaded).differences, [Difference::Alias { name: "CRIMSON".into() }]);
    }
}
