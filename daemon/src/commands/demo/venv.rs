//! The virtual environment of the demo: made once, kept in the cache directory, or given.

use crate::cli::{DemoArgs, Surroundings};
use crate::report;
use anyhow::{Context as _, bail};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::process::Command;

/// Major versions that the demo is known to play with.
const PACKAGES: [&str; 3] = ["celery>=5.3,<6", "sqlalchemy>=1.4,<3", "supervisor>=4.2,<5"];
const NAMES: &str = "celery, sqlalchemy and supervisor";
/// Written last: an environment without it is not whole.
const READY: &str = "unstale-demo-ready";

/// Returns a virtual environment with all packages, making one where there is none.
///
/// # Errors
/// Where a given one lacks a package, or a new one cannot be made.
pub(super) async fn prepare(args: &DemoArgs, surroundings: &Surroundings) -> anyhow::Result<PathBuf> {
    if let Some(venv) = &args.venv {
        let venv = venv.canonicalize().with_context(|| format!("cannot use --venv `{}`", venv.display()))?;
        for program in ["python", "celery", "supervisord"] {
            if !venv.join("bin").join(program).exists() {
                bail!("`{}` has no bin/{program}: it needs {NAMES}", venv.display());
            }
        }
        return Ok(venv);
    }
    let cache = if rustix::process::geteuid().is_root() {
        PathBuf::from("/var/cache/unstale")
    } else {
        let cache = surroundings.cache_home().context("neither HOME nor XDG_CACHE_HOME is set: give --venv")?;
        cache.join("unstale")
    };
    let venv = cache.join("demo-venv");
    if venv.join(READY).exists() {
        return Ok(venv);
    }
    report::note(&format!(
        "Once only: a virtual environment with {NAMES} is made in {} (a minute or two).",
        venv.display()
    ));
    std::fs::create_dir_all(&cache).with_context(|| format!("cannot make `{}`", cache.display()))?;
    let python = |program: &Path| {
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
        command
    };
    let made = python(&args.python).args(["-m", "venv", "--clear"]).arg(&venv).status().await;
    let made = made.with_context(|| format!("cannot run `{}`: is Python 3 installed?", args.python.display()))?;
    if !made.success() {
        bail!("`{} -m venv` failed: on Debian it needs the package python3-venv", args.python.display());
    }
    let installed = python(&venv.join("bin/python"))
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
        .args(PACKAGES)
        .status()
        .await
        .context("cannot run pip")?;
    if !installed.success() {
        bail!("pip could not install {NAMES}: look above for the reason, or give a --venv that has them");
    }
    std::fs::write(venv.join(READY), PACKAGES.join("\n"))
        .with_context(|| format!("cannot write to `{}`", venv.display()))?;
    Ok(venv)
}
