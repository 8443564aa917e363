//! The check before a broadcast: would every label that the code sends be accepted by the database?
//!
//! One direction only, and only what is proven: a label in the database that no code sends is no error here.

use super::DatabaseEnum;
use crate::api::{Finding, Severity};
use std::collections::{BTreeMap, BTreeSet};
use unstale_protocol::binding::{Binding, Sends};
use unstale_protocol::enumdef::EnumDef;
use unstale_protocol::ids::EnumName;
use unstale_protocol::value::Value;

/// Labels named in one message; the rest are counted.
const LABELS_SHOWN: usize = 5;

/// Compares what native bindings send with what the database accepts; errors come first.
///
/// Bindings with a type that has no name, or whose labels cannot be computed, are passed over.
pub(crate) fn check_before_broadcast(
    bindings: &[Binding],
    definitions: &BTreeMap<EnumName, EnumDef>,
    database: &[DatabaseEnum],
) -> Vec<Finding> {
    let mut findings: Vec<Finding> =
        bindings.iter().filter_map(|binding| check(binding, definitions, database)).collect();
    findings.sort_by(|a, b| (b.severity, &a.code, &a.column).cmp(&(a.severity, &b.code, &b.column)));
    findings
}

fn check(binding: &Binding, definitions: &BTreeMap<EnumName, EnumDef>, database: &[DatabaseEnum]) -> Option<Finding> {
    let name = binding.type_name.as_deref().filter(|_| binding.native)?;
    let shown = match &binding.schema {
        Some(schema) => format!("{schema}.{name}"),
        None => name.to_owned(),
    };
    let finding = |code: &str, slug: &str, message: String, help: String| {
        Some(Finding {
            code: code.to_owned(),
            name: slug.to_owned(),
            severity: Severity::Error,
            enum_name: shown.clone(),
            column: binding.column.to_string(),
            message,
            help,
        })
    };
    let Some(found) = find(binding.schema.as_deref(), name, database) else {
        return finding(
            "UE106",
            "type-missing",
            format!("`{}` is bound to the type `{shown}`, which the database does not have", binding.column),
            missing_type_help(name, &shown, database),
        );
    };
    let sent: Vec<&str> = binding.labels.iter().filter_map(|label| label.text()).collect();
    let known: BTreeSet<&str> = found.labels.iter().map(String::as_str).collect();
    let missing: Vec<&str> = sent.iter().copied().filter(|label| !known.contains(label)).collect();
    if missing.is_empty() {
        return None;
    }
    let definition = binding.enum_name.as_ref().and_then(|name| definitions.get(name));
    if let Some((sends, holds, help)) = definition.and_then(|definition| mixed_up(binding, definition, &known)) {
        return finding(
            "UE101",
            "sends-names-not-values",
            format!(
                "`{}` sends member {sends} {}; the type `{shown}` holds the {holds} {}. An insert fails with \
                 `invalid input value for enum`",
                binding.column,
                labels(&sent),
                labels(&found.labels),
            ),
            help,
        );
    }
    if let Some(pairs) = case_only(&missing, &found.labels) {
        return finding(
            "UE102",
            "case",
            format!(
                "`{}` sends {} where the type `{shown}` has {}",
                binding.column,
                labels(&pairs.0),
                labels(&pairs.1)
            ),
            "spell the labels alike on both sides".to_owned(),
        );
    }
    let added: Vec<String> = missing
        .iter()
        .take(LABELS_SHOWN)
        .map(|label| format!("ALTER TYPE {shown} ADD VALUE '{}';", label.replace('\'', "''")))
        .collect();
    finding(
        "UE103",
        "missing-in-database",
        format!("`{}` sends {}, which the type `{shown}` does not have", binding.column, labels(&missing)),
        format!("run the migration that adds it before the broadcast, or: {}", added.join(" ")),
    )
}

/// Returns the type that a column means: by schema and name, or as the connection's search path finds it.
pub(crate) fn find<'a>(schema: Option<&str>, name: &str, database: &'a [DatabaseEnum]) -> Option<&'a DatabaseEnum> {
    database.iter().find(|found| {
        found.name == name
            && match schema {
                Some(schema) => found.schema == schema,
                None => found.is_visible,
            }
    })
}

fn missing_type_help(name: &str, shown: &str, database: &[DatabaseEnum]) -> String {
    let elsewhere = database.iter().find(|found| found.name == name);
    let plain = |text: &str| text.chars().filter(|c| c.is_alphanumeric()).collect::<String>().to_lowercase();
    match elsewhere.or_else(|| database.iter().find(|found| plain(&found.name) == plain(name))) {
        Some(near) => {
            format!("did you mean `{}.{}`? Else run the migration that creates `{shown}`", near.schema, near.name)
        }
        None => format!("run the migration that creates `{shown}` before the broadcast"),
    }
}

/// Tells names sent for values and the reverse apart from labels that are simply not there: (sent, held, help).
fn mixed_up(
    binding: &Binding,
    definition: &EnumDef,
    known: &BTreeSet<&str>,
) -> Option<(&'static str, &'static str, String)> {
    let all_known = |labels: &[&str]| !labels.is_empty() && labels.iter().all(|label| known.contains(label));
    let names: Vec<&str> = definition.members.iter().map(|member| member.name.as_str()).collect();
    let values: Option<Vec<&str>> = definition
        .members
        .iter()
        .map(|member| match &member.value {
            Value::Str(text) => Some(text.as_str()),
            _ => None,
        })
        .collect();
    match binding.sends {
        Some(Sends::Names) if all_known(&values?) => Some((
            "names",
            "values",
            "add `values_callable=lambda e: [m.value for m in e]` to the column's `Enum(…)`; do not change the type: \
             rows use its labels"
                .to_owned(),
        )),
        Some(Sends::Values) if all_known(&names) => Some((
            "values",
            "names",
            "take the `values_callable` off the column's `Enum(…)`, or rename the type's labels".to_owned(),
        )),
        _ => None,
    }
}

/// Labels that differ from known ones by case only, where that is all that differs: (sent, held).
fn case_only(missing: &[&str], known: &[String]) -> Option<(Vec<String>, Vec<String>)> {
    missing
        .iter()
        .map(|sent| {
            let near = known.iter().find(|label| label.to_lowercase() == sent.to_lowercase())?;
            Some(((*sent).to_owned(), near.clone()))
        })
        .collect::<Option<Vec<_>>>()
        .map(|pairs| pairs.into_iter().unzip())
}

fn labels(all: &[impl AsRef<str>]) -> String {
    let shown: Vec<String> = all.iter().take(LABELS_SHOWN).map(|label| format!("{:?}", label.as_ref())).collect();
    match all.len().checked_sub(LABELS_SHOWN) {
        Some(more @ 1..) => format!("{} and {more} more", shown.join(", ")),
        _ if all.is_empty() => "nothing".to_owned(),
        _ => shown.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use unstale_protocol::binding::{ColumnName, Label};
    use unstale_protocol::enumdef::Member;

    const MEMBERS: [(&str, &str); 2] = [("HUBSPOT", "hubspot"), ("SALESFORCE", "salesforce")];

    fn definitions() -> BTreeMap<EnumName, EnumDef> {
        let members = MEMBERS.map(|(name, value)| Member { name: name.into(), value: Value::str(value) }).to_vec();
        BTreeMap::from([(EnumName::new("app.enums", "CrmType"), EnumDef { members, aliases: vec![] })])
    }

    fn binding(sends: Sends, labels: &[&str]) -> Binding {
        Binding {
            column: ColumnName { module: "app.models".into(), class: "Conn".into(), column: "crm_type".into() },
            enum_name: Some(EnumName::new("app.enums", "CrmType")),
            type_name: Some("crm_type".into()),
            schema: None,
            native: true,
            sends: Some(sends),
            labels: labels.iter().map(|label| Label::Text((*label).into())).collect(),
        }
    }

    fn database(schema: &str, name: &str, is_visible: bool, labels: &[&str]) -> DatabaseEnum {
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        DatabaseEnum { schema: schema.into(), name: name.into(), is_visible, labels }
    }

    fn codes(binding: &Binding, database: &[DatabaseEnum]) -> Vec<String> {
        let findings = check_before_broadcast(std::slice::from_ref(binding), &definitions(), database);
        findings.into_iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn each_way_of_missing_a_label_is_told_apart() {
        let check = |sends: Sends, sent: &[&str], held: &[&str], code: &[&str]| {
            assert_eq!(
                codes(&binding(sends, sent), &[database("public", "crm_type", true, held)]),
                code,
                "{sent:?} {held:?}"
            );
        };
        let (names, values) = (&["HUBSPOT", "SALESFORCE"], &["hubspot", "salesforce"]);
        check(Sends::Names, names, names, &[]);
        check(Sends::Values, values, values, &[]);
        check(Sends::Names, names, values, &["UE101"]);
        check(Sends::Values, values, names, &["UE101"]);
        check(Sends::Values, values, &["Hubspot", "salesforce"], &["UE102"]);
        check(Sends::Values, values, &["salesforce"], &["UE103"]);
        check(Sends::Labels, &["a", "b"], &["a"], &["UE103"]);
        check(Sends::Names, names, &["salesforce", "HUBSPOT", "SALESFORCE", "other"], &[]);
        check(Sends::Names, names, &[], &["UE103"]);
    }

    #[test]
    fn a_type_is_found_by_its_schema_or_by_the_search_path() {
        let held = ["hubspot", "salesforce"];
        let mut sent = binding(Sends::Values, &held);
        assert_eq!(codes(&sent, &[database("other", "crm_type", false, &held)]), ["UE106"]);
        sent.schema = Some("other".into());
        assert_eq!(codes(&sent, &[database("other", "crm_type", false, &held)]), [""; 0]);
        assert_eq!(codes(&sent, &[database("public", "crm_type", true, &held)]), ["UE106"]);
    }

    #[test]
    fn what_never_reaches_a_type_is_passed_over() {
        let mut column = binding(Sends::Names, &["X"]);
        column.native = false;
        assert_eq!(codes(&column, &[]), [""; 0]);
        let mut column = binding(Sends::Unresolved { why: "calls f".into() }, &[]);
        column.labels = vec![Label::Unresolved { why: "calls f".into() }];
        assert_eq!(codes(&column, &[database("public", "crm_type", true, &[])]), [""; 0]);
    }

    #[test]
    fn the_likely_fix_is_named() {
        let sent = binding(Sends::Names, &["HUBSPOT", "SALESFORCE"]);
        let found = [database("public", "crm_type", true, &["hubspot", "salesforce"])];
        let finding = check_before_broadcast(&[sent], &definitions(), &found).remove(0);
        assert!(finding.help.contains("values_callable=lambda e: [m.value for m in e]"), "{}", finding.help);
        assert!(finding.message.contains(r#"names "HUBSPOT", "SALESFORCE""#), "{}", finding.message);
        let sent = binding(Sends::Values, &["hubspot", "salesforce"]);
        let finding =
            check_before_broadcast(&[sent], &definitions(), &[database("public", "crmtype", true, &[])]).remove(0);
        assert!(finding.help.contains("did you mean `public.crmtype`?"), "{}", finding.help);
    }
}
