//! `unstale inspect`: what the Python workers on this host hold, and whether it is what their source says.
//!
//! One look, nothing kept, nothing changed.

mod answer;

use super::parts;
use crate::api::Inspect;
use crate::cli::{InspectArgs, Output};
use crate::clock::wall_ms;
use crate::database::{self, DatabaseEnum};
use crate::render::{self, inspect::Detail};
use crate::report::{self, Exit};
use answer::Layers;
use anyhow::{Context as _, bail};
use std::path::{Path, PathBuf};
use unstale_agent::eyes::Eyes;
use unstale_agent::inspect::{InspectOptions, inspect};
use unstale_protocol::ids::Pid;
use unstale_protocol::verdict::Verdict;

pub(super) async fn run(args: InspectArgs) -> anyhow::Result<Exit> {
    let options = InspectOptions {
        pids: args.pids.iter().copied().map(Pid).collect(),
        roots: roots(&args.roots.roots)?,
        all: args.all,
        uid: rustix::process::getuid().as_raw(),
    };
    let mut eyes = Eyes::new(parts::reader(), parts::parser());
    let inspection = inspect(&mut eyes, &options).await.context("cannot look at the processes of this host")?;
    if let Some(missing) = inspection.missing.first() {
        refuse_missing(*missing)?;
    }
    let database = match &args.database {
        Some(url) if args.all_layers => labels(url).await,
        _ => None,
    };
    let layers = if args.all_layers { Layers::All(database.as_deref()) } else { Layers::OfFindings };
    let answer = answer::answer(&inspection, layers, &crate::host::name(), wall_ms());
    let detail = if args.all_layers { Detail::Everything } else { Detail::Findings };
    match args.output.output {
        Output::Json => report::answer_json(&answer),
        Output::Text => report::answer(&render::inspect::text(&answer, detail)),
    }
    for note in render::inspect::notes(&answer) {
        report::note(&note);
    }
    Ok(exit(&answer))
}

/// Reads the labels of the database. What the workers hold is told without them, too.
async fn labels(url: &str) -> Option<Vec<DatabaseEnum>> {
    match database::read_labels(url).await {
        Ok(labels) => Some(labels),
        Err(error) => {
            let help = error.help().map(|help| format!("; {help}")).unwrap_or_default();
            let error = anyhow::Error::new(error);
            let text = render::plain(&format!("the database is left out: {error:#}{help}"));
            report::note(&format!("{}: {text}", render::style::doubtful("warning")));
            None
        }
    }
}

fn roots(roots: &[PathBuf]) -> anyhow::Result<Vec<String>> {
    roots
        .iter()
        .map(|root| {
            let whole = root.canonicalize().with_context(|| format!("cannot read --root `{}`", root.display()))?;
            let text = whole.into_os_string().into_string();
            text.map_err(|_| anyhow::anyhow!("--root `{}` is not UTF-8", root.display()))
        })
        .collect()
}

fn refuse_missing(pid: Pid) -> anyhow::Result<()> {
    if Path::new(&format!("/proc/{pid}")).exists() {
        bail!("process {pid} is not a Python process");
    }
    bail!("there is no process {pid}");
}

/// 1 any stale, before 3 any unknown.
fn exit(inspect: &Inspect) -> Exit {
    let any = |verdict: Verdict| inspect.workers.iter().any(|worker| worker.verdict == verdict);
    if any(Verdict::Stale) {
        Exit::Stale
    } else if any(Verdict::Unknown) {
        Exit::Unknown
    } else {
        Exit::Clean
    }
}
