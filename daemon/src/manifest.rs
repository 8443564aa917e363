//! A manifest from source: what `broadcast` announces. Reads files, runs nothing.
//!
//! The parser child does the parsing; this joins what it says, once per Python version, and names what
//! cannot be told. Called by `broadcast` only.

mod tree;

use crate::api::{Finding, Severity};
use anyhow::{Context as _, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use tree::SourceFile;
use unstale_agent::child::Program;
use unstale_agent::parser::{Item, Parser};
use unstale_agent::python::ir::Summary;
use unstale_agent::python::link::{Evaluated, ModuleKind, Project};
use unstale_agent::source::may_matter;
use unstale_protocol::binding::Binding;
use unstale_protocol::enumdef::EnumDef;
use unstale_protocol::ids::{EnumName, PythonVersion};
use unstale_protocol::manifest::{Entry, Manifest, ManifestBinding, Origin, PythonRange, Variant};

/// Minor versions of Python 3 that definitions are computed for.
const MINORS: std::ops::RangeInclusive<u8> = 8..=14;
/// How often modules that would help are looked up in the tree.
const ROUNDS_MAX: usize = 16;

/// A manifest, and what only this host may know of it.
#[derive(Debug, Default)]
pub(crate) struct Built {
    /// What travels.
    pub(crate) manifest: Manifest,
    /// Bindings with their labels in clear, for the check against a database.
    pub(crate) bindings: Vec<Binding>,
    /// Definitions with their values, for the same.
    pub(crate) definitions: BTreeMap<EnumName, EnumDef>,
    /// Files that could not be told.
    pub(crate) findings: Vec<Finding>,
    /// Python files below the paths.
    pub(crate) files: usize,
}

/// Builds the manifest of the source below `paths`.
///
/// # Errors
/// Where a path is not there, cannot be read, or holds more than is allowed.
pub(crate) async fn build(paths: &[PathBuf], parser: Program) -> anyhow::Result<Built> {
    let roots = paths
        .iter()
        .map(|path| path.canonicalize().with_context(|| format!("cannot read `{}`", path.display())))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let files = tree::collect(&roots)?;
    let mut built = Built { files: files.len(), ..Built::default() };
    let mut reading = Reading { parser: Parser::new(parser), files: &files, summaries: BTreeMap::new() };
    let relevant: BTreeSet<usize> = (0..files.len()).filter(|index| reading.may_matter(*index)).collect();
    reading.parse(&relevant, &mut built.findings).await?;
    let versions: Vec<PythonVersion> = MINORS.map(PythonVersion::three).collect();
    let mut evaluated: Vec<(PythonVersion, BTreeMap<usize, Evaluated>)> = Vec::new();
    for version in versions {
        evaluated.push((version, reading.evaluate(version, &relevant).await?));
    }
    join(&files, &evaluated, &mut built);
    built.manifest.origin = origin(&roots);
    built.manifest.sort();
    if built.manifest.entries.is_empty() && built.findings.is_empty() {
        let names: Vec<String> = paths.iter().map(|path| format!("`{}`", path.display())).collect();
        bail!("no enum and no enum column was found in {} Python files below {}", files.len(), names.join(", "));
    }
    Ok(built)
}

struct Reading<'a> {
    parser: Parser,
    files: &'a [SourceFile],
    summaries: BTreeMap<usize, Arc<Summary>>,
}

impl Reading<'_> {
    fn may_matter(&self, index: usize) -> bool {
        self.files.get(index).is_some_and(|file| may_matter(&file.bytes))
    }

    /// Parses files that have not been; a file that cannot be parsed is a finding.
    async fn parse(&mut self, wanted: &BTreeSet<usize>, findings: &mut Vec<Finding>) -> anyhow::Result<()> {
        let new: Vec<usize> = wanted.iter().copied().filter(|index| !self.summaries.contains_key(index)).collect();
        let items = new.iter().filter_map(|index| self.files.get(*index)).map(|file| Item::Source(file.bytes.clone()));
        let parsed = self.parser.summarize(items.collect()).await;
        for (index, result) in new.iter().zip(parsed) {
            let summary = match result {
                Ok(summary) => summary,
                Err(error) => {
                    if let Some(file) = self.files.get(*index) {
                        findings.push(unparsed(file, &error.to_string()));
                    }
                    Summary::default()
                }
            };
            self.summaries.insert(*index, Arc::new(summary));
        }
        Ok(())
    }

    /// Computes what each relevant module defines under one Python version, with the modules that would help.
    async fn evaluate(
        &mut self,
        version: PythonVersion,
        relevant: &BTreeSet<usize>,
    ) -> anyhow::Result<BTreeMap<usize, Evaluated>> {
        let mut project = Project::new(version);
        for (index, summary) in &self.summaries {
            if let Some(file) = self.files.get(*index) {
                project.insert(file.module.clone(), kind(file), Arc::clone(summary));
            }
        }
        for _ in 0..ROUNDS_MAX {
            let evaluated: BTreeMap<usize, Evaluated> = relevant
                .iter()
                .filter_map(|index| Some((*index, project.definitions(&self.files.get(*index)?.module))))
                .collect();
            let missing: BTreeSet<&String> = evaluated.values().flat_map(|module| &module.missing).collect();
            let helpers: BTreeSet<usize> = (0..self.files.len())
                .filter(|index| !self.summaries.contains_key(index))
                .filter(|index| self.files.get(*index).is_some_and(|file| missing.contains(&file.module)))
                .collect();
            if helpers.is_empty() {
                return Ok(evaluated);
            }
            // A helper that cannot be parsed leaves values unresolved, which says so itself.
            self.parse(&helpers, &mut Vec::new()).await?;
            for index in helpers {
                if let (Some(file), Some(summary)) = (self.files.get(index), self.summaries.get(&index)) {
                    project.insert(file.module.clone(), kind(file), Arc::clone(summary));
                }
            }
        }
        bail!("modules import each other more than {ROUNDS_MAX} levels deep")
    }
}

fn kind(file: &SourceFile) -> ModuleKind {
    if file.is_package { ModuleKind::Package } else { ModuleKind::Module }
}

fn unparsed(file: &SourceFile, why: &str) -> Finding {
    Finding {
        code: "UE001".to_owned(),
        name: "cannot-be-parsed".to_owned(),
        severity: Severity::Error,
        enum_name: String::new(),
        column: file.path.clone(),
        message: format!("`{}` cannot be parsed, so its enums would not be announced: {why}", file.shown),
        help: "mend the file, or move it out of the directories that are announced".to_owned(),
    }
}

/// Joins what the versions say into entries.
fn join(files: &[SourceFile], evaluated: &[(PythonVersion, BTreeMap<usize, Evaluated>)], built: &mut Built) {
    let Some((_, newest)) = evaluated.last() else { return };
    let paths: BTreeMap<&str, &str> = files.iter().map(|file| (file.module.as_str(), file.path.as_str())).collect();
    let mut entries: BTreeMap<(String, String), Entry> = BTreeMap::new();
    for (index, file) in files.iter().enumerate() {
        let mut names: BTreeSet<String> = BTreeSet::new();
        for (_, modules) in evaluated {
            let defined = modules.get(&index).into_iter().flat_map(|module| &module.enums);
            // A base class without members can be nobody's old copy.
            names.extend(
                defined
                    .filter(|defined| !defined.definition.members.is_empty() || !defined.members_known)
                    .map(|defined| defined.name.qualname.clone()),
            );
        }
        for qualname in names {
            let entry = entry(file, &qualname, index, evaluated);
            entries.insert((file.module.clone(), qualname), entry);
        }
        for defined in newest.get(&index).into_iter().flat_map(|module| &module.enums) {
            built.definitions.insert(defined.name.clone(), defined.definition.clone());
        }
    }
    for (index, module) in newest {
        let Some(file) = files.get(*index) else { continue };
        for binding in &module.bindings {
            built.bindings.push(binding.clone());
            let path = paths.get(binding.column.module.as_str()).copied().unwrap_or(&file.path);
            let of_enum = binding
                .enum_name
                .as_ref()
                .and_then(|name| entries.get_mut(&(name.module.clone(), name.qualname.clone())));
            let travelling = ManifestBinding::new(binding, path);
            if let Some(entry) = of_enum {
                entry.bindings.push(travelling);
                continue;
            }
            let qualname = format!("{}.{}", binding.column.class, binding.column.column);
            let bare = Entry {
                path: path.to_owned(),
                module: binding.column.module.clone(),
                qualname: qualname.clone(),
                bases: Vec::new(),
                variants: Vec::new(),
                bindings: vec![travelling],
            };
            entries.insert((binding.column.module.clone(), qualname), bare);
        }
    }
    built.manifest.entries = entries.into_values().collect();
}

/// One enum with its variants; neighbouring versions that agree share one.
fn entry(
    file: &SourceFile,
    qualname: &str,
    index: usize,
    evaluated: &[(PythonVersion, BTreeMap<usize, Evaluated>)],
) -> Entry {
    let mut variants: Vec<Variant> = Vec::new();
    let mut bases = Vec::new();
    for (version, modules) in evaluated {
        let defined = modules
            .get(&index)
            .and_then(|module| module.enums.iter().find(|defined| defined.name.qualname == qualname));
        let Some(defined) = defined else {
            close(&mut variants, *version);
            continue;
        };
        bases.clone_from(&defined.bases);
        let outline = defined.definition.outline();
        let is_same = variants.last().is_some_and(|last| {
            last.python.below.is_none() && last.outline == outline && last.members_known == defined.members_known
        });
        if !is_same {
            close(&mut variants, *version);
            let python = PythonRange { from: *version, below: None };
            variants.push(Variant { python, outline, members_known: defined.members_known });
        }
    }
    Entry {
        path: file.path.clone(),
        module: file.module.clone(),
        qualname: qualname.to_owned(),
        bases,
        variants,
        bindings: Vec::new(),
    }
}

fn close(variants: &mut [Variant], version: PythonVersion) {
    if let Some(last) = variants.last_mut() {
        last.python.below = last.python.below.or(Some(version));
    }
}

/// Where the manifest was made: `random(4)`, `mount_namespaces(7)`.
fn origin(roots: &[PathBuf]) -> Option<Origin> {
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned();
    let link = std::fs::read_link("/proc/self/ns/mnt").ok()?;
    let mount_namespace = link.to_str()?.strip_prefix("mnt:[")?.strip_suffix(']')?.parse().ok()?;
    let paths = roots.iter().map(|root| root.to_str().map(ToOwned::to_owned)).collect::<Option<Vec<_>>>()?;
    Some(Origin { boot_id, mount_namespace, paths })
}
