//! Lookups in a made-up tree.

use super::*;
use crate::files::Entry;
use std::collections::{BTreeMap, BTreeSet};

/// Files by path, and symbolic links to directories by prefix.
#[derive(Default)]
struct Made {
    files: BTreeSet<String>,
    links: BTreeMap<String, String>,
}

impl Made {
    fn new(files: &[&str]) -> Self {
        Self { files: files.iter().map(|file| (*file).to_owned()).collect(), links: BTreeMap::new() }
    }

    fn link(mut self, from: &str, to: &str) -> Self {
        self.links.insert(from.to_owned(), to.to_owned());
        self
    }

    fn real(&self, path: &str) -> String {
        self.links
            .iter()
            .find_map(|(from, to)| Some(format!("{to}{}", path.strip_prefix(from.as_str())?)))
            .unwrap_or_else(|| path.to_owned())
    }
}

impl Tree for Made {
    fn list(&self, directory: &str) -> Option<BTreeMap<String, Entry>> {
        let prefix = format!("{}/", self.real(directory).trim_end_matches('/'));
        let mut names = BTreeMap::new();
        for rest in self.files.iter().filter_map(|file| file.strip_prefix(&prefix)) {
            match rest.split_once('/') {
                Some((name, _)) => names.insert(name.to_owned(), Entry::Directory),
                None => names.insert(rest.to_owned(), Entry::File),
            };
        }
        (!names.is_empty()).then_some(names)
    }

    fn entry(&self, path: &str) -> Option<Entry> {
        let real = self.real(path);
        if self.files.contains(&real) {
            return Some(Entry::File);
        }
        self.list(path).map(|_| Entry::Directory)
    }

    fn resolve(&self, path: &str) -> Option<((u64, u64), String)> {
        let real = self.real(path);
        self.entry(&real)?;
        let inode = real.bytes().fold(7_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        Some(((1, inode), real))
    }

    fn is_image(&self, path: &str) -> bool {
        path.starts_with("/image")
    }
}

fn query(cwd: &str, path: &[&str], modules: &[(&str, &str)]) -> Query {
    let module = |(name, file): &(&str, &str)| LoadedModule {
        name: (*name).to_owned(),
        file: (!file.is_empty()).then(|| (*file).to_owned()),
        spec_name: None,
        initializing: false,
    };
    Query {
        modules: modules.iter().map(module).collect(),
        path: path.iter().map(|entry| (*entry).to_owned()).collect(),
        argv0: None,
        python: PythonVersion::three(11),
        cwd: Some(cwd.to_owned()),
        pwd: None,
        python_path: None,
        root: None,
        supervisor_directory: None,
    }
}

fn source(path: &str) -> Located {
    Located::Source { path: path.to_owned() }
}

fn next(tree: &Made, query: &Query) -> Vec<Located> {
    let cwd_id = query.cwd.as_deref().and_then(|cwd| tree.resolve(cwd)).map(|(id, _)| id);
    find(tree, query, cwd_id).findings.into_iter().map(|finding| finding.next).collect()
}

fn releases() -> Made {
    Made::new(&["/srv/releases/6/app/__init__.py", "/srv/releases/6/app/enums.py"])
        .link("/srv/current", "/srv/releases/7")
}

#[test]
fn a_worker_behind_a_link_that_moved_on_would_import_the_new_release() {
    let mut tree = releases();
    tree.files.extend(["/srv/releases/7/app/__init__.py".to_owned(), "/srv/releases/7/app/enums.py".to_owned()]);
    let mut asked =
        query("/srv/releases/6", &["/srv/releases/6", "/usr/lib"], &[("app.enums", "/srv/releases/6/app/enums.py")]);
    asked.pwd = Some("/srv/current".to_owned());
    let found = find(&tree, &asked, tree.resolve("/srv/releases/6").map(|(id, _)| id));
    assert_eq!(found.start.from, StartFrom::PwdThroughLink);
    assert_eq!(found.findings[0].imported_from.as_deref(), Some("/srv/releases/6/app/enums.py"));
    assert_eq!(found.findings[0].next, source("/srv/current/app/enums.py"));
}

#[test]
fn a_pwd_that_is_elsewhere_is_not_believed() {
    let tree = releases();
    let mut asked = query("/srv/releases/6", &[""], &[("app.enums", "/srv/releases/6/app/enums.py")]);
    for pwd in ["/srv/current", "/home/me", "relative", "/srv/releases/6/app"] {
        asked.pwd = Some(pwd.to_owned());
        assert_eq!(next(&tree, &asked), [source("/srv/releases/6/app/enums.py")], "{pwd}");
    }
}

#[test]
fn the_next_directory_comes_from_configuration_then_supervisor_then_pwd() {
    let tree = Made::new(&["/a/m.py", "/b/m.py", "/c/m.py"]).link("/link", "/c");
    let mut asked = query("/c", &["/c"], &[("m", "/c/m.py")]);
    assert_eq!(next(&tree, &asked), [source("/c/m.py")]);
    asked.pwd = Some("/link".to_owned());
    assert_eq!(next(&tree, &asked), [source("/link/m.py")]);
    asked.supervisor_directory = Some("/b/".to_owned());
    assert_eq!(next(&tree, &asked), [source("/b/m.py")]);
    asked.root = Some("/a".to_owned());
    assert_eq!(next(&tree, &asked), [source("/a/m.py")]);
}

#[test]
fn only_entries_that_were_the_working_directory_move() {
    let tree = Made::new(&["/old/m.py", "/new/m.py", "/old/src/n.py", "/new/src/n.py", "/old/lib/o.py"]);
    let modules = [("m", "m.py"), ("n", "/old/src/n.py"), ("o", "/old/lib/o.py")];
    let mut asked = query("/old", &["", "/old/src", "/old/lib"], &modules);
    asked.root = Some("/new".to_owned());
    asked.python_path = Some("src:/old/lib".to_owned());
    assert_eq!(next(&tree, &asked), [source("/new/m.py"), source("/new/src/n.py"), source("/old/lib/o.py")]);
}

#[test]
fn the_order_of_search_is_that_of_the_import_system() {
    fn check(files: &[&str], expected: &str) {
        let mut paths: Vec<String> = files.iter().map(|file| format!("/p/{file}")).collect();
        paths.push("/p/other.txt".to_owned());
        let tree = Made { files: paths.into_iter().collect(), links: BTreeMap::new() };
        let located = next(&tree, &query("/p", &["/p"], &[("m", "/p/m.py")])).remove(0);
        let path = match &located {
            Located::Namespace { directories } => directories.join(":"),
            other => other.path().unwrap_or("-").to_owned(),
        };
        assert_eq!(path, expected, "{files:?}: {located:?}");
    }
    check(&["m/__init__.py", "m.cpython-311-x86_64-linux-gnu.so", "m.py"], "/p/m/__init__.py");
    check(&["m/__init__.pyc", "m.py"], "/p/m/__init__.pyc");
    check(&["m/x.py", "m.cpython-311-x86_64-linux-gnu.so", "m.py"], "/p/m.cpython-311-x86_64-linux-gnu.so");
    check(&["m.cpython-310-x86_64-linux-gnu.so", "m.py"], "/p/m.py");
    check(&["m.abi3.so", "m.py"], "/p/m.abi3.so");
    check(&["m.py", "m.pyc"], "/p/m.py");
    check(&["m.pyc"], "/p/m.pyc");
    check(&["m/x.py"], "/p/m");
    check(&["n.py"], "-");
}

#[test]
fn a_module_is_searched_in_the_package_that_was_found() {
    let tree =
        Made::new(&["/new/app/__init__.py", "/new/app/enums/__init__.py", "/lib/app/late.py", "/lib/app/__init__.py"]);
    let modules =
        [("app.enums", "/old/app/enums.py"), ("app.late", "/old/app/late.py"), ("app.sub.x", "/old/app/sub/x.py")];
    let mut asked = query("/old", &["/old", "/lib"], &modules);
    asked.root = Some("/new".to_owned());
    let found = next(&tree, &asked);
    assert_eq!(found[0], source("/new/app/enums/__init__.py"));
    // The first `app` shadows the second one, as it does for Python.
    assert_eq!(found[1], Located::Absent { searched: vec!["/new/app".to_owned()] });
    assert!(matches!(found[2], Located::Absent { .. }));
}

#[test]
fn a_namespace_package_has_its_portions_on_the_whole_path() {
    let tree = Made::new(&["/a/ns/x.py", "/b/ns/y.py", "/c/other.py"]);
    let asked = query("/c", &["/a", "/b", "/c"], &[("ns.x", "/a/ns/x.py"), ("ns.y", "/b/ns/y.py"), ("ns", "")]);
    let found = next(&tree, &asked);
    assert_eq!(found[..2], [source("/a/ns/x.py"), source("/b/ns/y.py")]);
    assert_eq!(found[2], Located::Namespace { directories: vec!["/a/ns".to_owned(), "/b/ns".to_owned()] });
}

#[test]
fn a_script_is_found_again_by_its_command_line() {
    let tree = Made::new(&[
        "/old/bin/run.py",
        "/new/bin/run.py",
        "/old/app/__main__.py",
        "/new/app/__main__.py",
        "/new/app/__init__.py",
    ]);
    let mut asked = query("/old", &["/old/bin"], &[("__main__", "/old/bin/run.py")]);
    asked.root = Some("/new".to_owned());
    asked.argv0 = Some("/old/bin/run.py".to_owned());
    assert_eq!(next(&tree, &asked), [source("/old/bin/run.py")]);
    asked.argv0 = Some("bin/run.py".to_owned());
    assert_eq!(next(&tree, &asked), [source("/new/bin/run.py")]);
    let mut asked = query("/old", &["/old"], &[("__main__", "/old/app/__main__.py")]);
    asked.root = Some("/new".to_owned());
    asked.modules[0].spec_name = Some("app.__main__".to_owned());
    assert_eq!(next(&tree, &asked), [source("/new/app/__main__.py")]);
}

#[test]
fn archives_and_odd_names_are_said_to_be_unsupported() {
    let tree = Made::new(&["/a.zip", "/p/m.py"]);
    let found = next(&tree, &query("/p", &["/a.zip"], &[("z", "/a.zip/z.py"), ("m", "/p/m.py"), ("..x", "/p/q.py")]));
    assert!(matches!(&found[0], Located::Unsupported { why } if why.contains("zip")), "{:?}", found[0]);
    assert_eq!(found[1], source("/p/m.py"));
    assert!(matches!(&found[2], Located::Absent { .. }), "{:?}", found[2]);
}

#[test]
fn a_file_of_an_image_is_marked() {
    let tree = Made::new(&["/image/m.py", "/p/n.py"]);
    let asked = query("/p", &["/image", "/p"], &[("m", "/image/m.py"), ("n", "/p/n.py")]);
    let marks: Vec<bool> = find(&tree, &asked, None).findings.iter().map(|finding| finding.in_image).collect();
    assert_eq!(marks, [true, false]);
}
