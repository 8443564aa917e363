//! Mapped classes of SQLAlchemy, read as SQLAlchemy itself sees them.

use crate::python::{Running, complete, fixtures, interpreters, venv};
use serde_json::json;
use std::path::Path;
use unstale_agent::reading::ReadOptions;

fn check(python: &Path, arguments: &[&str]) {
    let mut running = Running::start(python, arguments, &fixtures().join("python"));
    let said = running.line();
    let reading = complete(running.read(&ReadOptions::default()));
    let found = reading.mapped.iter().map(|class| json!(class)).collect::<Vec<_>>();
    let wanted = said["mapped"].as_array().cloned().unwrap_or_default();
    for (found, wanted) in found.iter().zip(&wanted) {
        assert_eq!(found, wanted, "{}", said["sqlalchemy"]);
    }
    assert!(wanted.len() >= 5, "{said}");
    assert_eq!(found.len(), wanted.len(), "{}", said["sqlalchemy"]);
    assert_eq!(json!(reading.interpreter.and_then(|interpreter| interpreter.sqlalchemy)), said["sqlalchemy"]);
    assert_eq!(reading.modules.len(), 1, "{:?}", reading.modules);
}

/// Returns the oldest interpreter whose minor version lies in the range.
fn oldest(first: u8, last: u8) -> Option<std::path::PathBuf> {
    let minor = |release: &str| release.split('.').nth(1).and_then(|minor| minor.parse::<u8>().ok());
    let mut all = interpreters().into_iter();
    all.find(|(release, _)| minor(release).is_some_and(|minor| (first..=last).contains(&minor))).map(|(_, path)| path)
}

#[test]
fn columns_of_sqlalchemy_1_4_are_read() {
    let python = oldest(8, 12).expect("CPython 3.8 to 3.12");
    check(&venv(&python, "sqlalchemy14", &["sqlalchemy==1.4.54"]).join("bin/python"), &["mapped.py"]);
}

#[test]
fn columns_of_sqlalchemy_2_0_are_read() {
    let python = oldest(8, 13).expect("CPython 3.8 to 3.13");
    check(&venv(&python, "sqlalchemy20", &["sqlalchemy==2.0.44"]).join("bin/python"), &["mapped.py"]);
}

#[test]
fn columns_of_the_newest_sqlalchemy_and_of_sqlmodel_are_read() {
    let (_, python) = interpreters().pop().expect("an interpreter");
    let needs = ["sqlalchemy>=2.1,<2.2", "sqlmodel"];
    check(&venv(&python, "sqlmodel", &needs).join("bin/python"), &["mapped.py", "--sqlmodel"]);
}
