//! The canonical form against vectors that another implementation made: `tests/fixtures/fingerprints.py`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde::Deserialize;
use unstale_protocol::enumdef::EnumDef;
use unstale_protocol::fingerprint::{Fingerprint, ValueDigest};
use unstale_protocol::value::Value;

#[derive(Deserialize)]
struct Vectors {
    values: Vec<OfValue>,
    definitions: Vec<OfDefinition>,
}

#[derive(Deserialize)]
struct OfValue {
    value: Value,
    digest: ValueDigest,
}

#[derive(Deserialize)]
struct OfDefinition {
    #[serde(flatten)]
    definition: EnumDef,
    fingerprint: Fingerprint,
}

fn vectors() -> Vectors {
    serde_json::from_str(include_str!("../../tests/fixtures/fingerprints.json")).unwrap()
}

#[test]
fn values_have_the_digests_that_another_implementation_computes() {
    for OfValue { value, digest } in vectors().values {
        assert_eq!(ValueDigest::of(&value), Some(digest), "{value:?}");
    }
}

#[test]
fn definitions_have_the_fingerprints_that_another_implementation_computes() {
    for OfDefinition { definition, fingerprint } in vectors().definitions {
        assert_eq!(definition.fingerprint(), fingerprint, "{definition:?}");
    }
}
