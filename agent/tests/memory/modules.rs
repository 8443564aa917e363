//! Which modules and enums are reported: the app's own, and what else was asked for.

use crate::python::{Running, complete, fixtures, interpreters};
use unstale_agent::reading::{ReadOptions, Reading};

fn enums(reading: &Reading) -> Vec<String> {
    reading.enums.iter().map(|class| class.name.module.clone()).collect()
}

fn modules(reading: &Reading) -> Vec<&str> {
    reading.modules.iter().map(|module| module.name.as_str()).collect()
}

#[test]
fn only_the_apps_own_modules_are_reported() {
    for (release, python) in interpreters() {
        let place = tempfile::tempdir().expect("a directory");
        let root = place.path().to_str().expect("text");
        let mut running = Running::start(&python, &["loaded.py", root], &fixtures().join("python"));
        running.line();

        let plain = complete(running.read(&ReadOptions::default()));
        assert_eq!(enums(&plain), ["app.enums", "space.part", "statistics"], "{release}");
        assert_eq!(modules(&plain), ["__main__", "app.enums", "space.part", "statistics"], "{release}");
        let initializing: Vec<bool> = plain.modules.iter().map(|module| module.initializing).collect();
        assert_eq!(initializing, [false, true, false, false], "{release}");
        assert_eq!(plain.modules[1].file.as_deref(), Some(&*format!("{root}/app/enums.py")), "{release}");

        let listed = complete(running.read(&ReadOptions { list_modules: true, ..ReadOptions::default() }));
        let wanted = ["__main__", "app", "app.enums", "app.plain", "app.helpers", "space.part", "statistics"];
        assert_eq!(modules(&listed), wanted, "{release}");
        assert_eq!(enums(&listed), enums(&plain), "{release}");

        let options = ReadOptions { app_packages: vec!["installed".to_owned()], ..ReadOptions::default() };
        let package = complete(running.read(&options));
        let wanted = ["app.enums", "installed", "installed.sub", "space.part", "statistics"];
        assert_eq!(enums(&package), wanted, "{release}");

        let options = ReadOptions { app_packages: vec!["installed.sub".to_owned()], ..ReadOptions::default() };
        let part = complete(running.read(&options));
        assert_eq!(enums(&part), ["app.enums", "installed.sub", "space.part", "statistics"], "{release}");

        let options = ReadOptions { app_roots: vec![format!("{root}/site-packages/other/")], ..ReadOptions::default() };
        let rooted = complete(running.read(&options));
        assert_eq!(enums(&rooted), ["app.enums", "other", "space.part", "statistics"], "{release}");

        let all = complete(running.read(&ReadOptions { all: true, ..ReadOptions::default() }));
        let found = enums(&all);
        for module in ["installed", "other", "app.enums"] {
            assert!(found.iter().any(|name| name == module), "{release}: {module} in {found:?}");
        }
        assert!(!found.iter().any(|name| name == "enum"), "{release}");
    }
}
