//! The app of a demo: its files, its Celery worker under a supervisord of its own, and the notes of its tasks.

use super::stage::Stage;
use anyhow::{Context as _, bail};
use std::fs::{self, File, FileTimes};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// One worker with its app.
#[derive(Debug)]
pub(super) struct Shop {
    /// The host it stands for; empty where there is only one.
    name: String,
    root: PathBuf,
    venv: PathBuf,
}

impl Shop {
    /// What the worker holds at first, as people see it.
    pub(super) const SOURCE: [&str; 3] =
        ["class CrmType(str, enum.Enum):", "    HUBSPOT = \"HUBSPOT\"", "    SALESFORCE = \"salesforce\""];

    /// Writes the app into the stage's directory `name`, or into the stage itself where that is empty.
    ///
    /// # Errors
    /// Where a file cannot be written.
    pub(super) fn write(stage: &Stage, name: &str, venv: &Path) -> anyhow::Result<Self> {
        let root = if name.is_empty() { stage.directory().to_owned() } else { stage.directory().join(name) };
        let text = |path: &Path| path.display().to_string().replace('%', "%%");
        let config =
            include_str!("supervisord.conf").replace("{directory}", &text(&root)).replace("{venv}", &text(venv));
        let files = [
            ("app/__init__.py", ""),
            ("app/enums.py", include_str!("enums.py")),
            ("app/models.py", include_str!("models.py")),
            ("app/tasks.py", include_str!("tasks.py")),
            ("send.py", include_str!("send.py")),
            ("supervisord.conf", config.as_str()),
            ("queue/.keep", ""),
            ("control/.keep", ""),
        ];
        for (name, content) in files {
            let path = root.join(name);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).with_context(|| format!("cannot make `{}`", parent.display()))?;
            }
            fs::write(&path, content).with_context(|| format!("cannot write `{}`", path.display()))?;
        }
        Ok(Self { name: name.to_owned(), root, venv: venv.to_owned() })
    }

    /// The host it stands for.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Starts supervisord, which starts the worker.
    ///
    /// # Errors
    /// Where it cannot be run.
    pub(super) fn start(&self, stage: &mut Stage) -> anyhow::Result<()> {
        let config = self.root.join("supervisord.conf");
        let mut command = stage.program(&self.venv.join("bin/supervisord"));
        command.args(["-n", "-c"]).arg(config).current_dir(&self.root);
        let logs = [self.root.join("worker.log"), self.root.join("supervisord.log")];
        stage.start(&self.called("supervisord"), command, &logs)
    }

    fn called(&self, what: &str) -> String {
        if self.name.is_empty() { what.to_owned() } else { format!("{what} of {}", self.name) }
    }

    /// Tells whether the worker takes tasks.
    pub(super) fn is_ready(&self) -> bool {
        self.read("worker.log").contains(" ready.")
    }

    /// Returns what the tasks noted.
    pub(super) fn ledger(&self) -> String {
        self.read("ledger.txt")
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.root.join(name)).unwrap_or_default()
    }

    /// Sends a task to the worker.
    ///
    /// # Errors
    /// Where it cannot be sent.
    pub(super) async fn send(&self, stage: &Stage, name: &str, seconds: u32) -> anyhow::Result<()> {
        let mut command = stage.program(&self.venv.join("bin/python"));
        // Whoever sends must not write the bytecode that this is all about.
        command.env("PYTHONDONTWRITEBYTECODE", "1").arg("send.py").arg(name).arg(seconds.to_string());
        command.current_dir(&self.root).stdout(Stdio::null()).stderr(Stdio::piped());
        let output = command.output().await.context("cannot send a task")?;
        if !output.status.success() {
            bail!("cannot send a task: {}", crate::render::plain(&String::from_utf8_lossy(&output.stderr)));
        }
        Ok(())
    }

    /// Changes the enum's source, keeping its size and its time of change.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub(super) fn flip(&self) -> anyhow::Result<()> {
        let path = self.root.join("app/enums.py");
        let change = || -> std::io::Result<()> {
            let modified = fs::metadata(&path)?.modified()?;
            let text = fs::read_to_string(&path)?.replace("= \"HUBSPOT\"", "= \"hubspot\"");
            let mut file = File::create(&path)?;
            file.write_all(text.as_bytes())?;
            file.set_times(FileTimes::new().set_modified(modified))
        };
        change().with_context(|| format!("cannot change `{}`", path.display()))
    }

    /// Returns what the next task wrote, after proof that the long one ran once and whole.
    ///
    /// # Errors
    /// What was not as it should be.
    pub(super) fn new_label(&self) -> anyhow::Result<String> {
        new_label(&self.ledger()).with_context(|| self.called("the worker"))
    }

    /// Returns when the worker was down: one span, of times as its supervisor writes them (`2026-01-31 12:00:00,123`).
    ///
    /// # Errors
    /// Where it was restarted more than once, or not at all.
    pub(super) fn down(&self) -> anyhow::Result<(String, String)> {
        down(&self.read("supervisord.log")).with_context(|| self.called("the worker"))
    }
}

/// Reads the tasks' own notes: the long one ran once and whole, and the next one writes the new label.
fn new_label(ledger: &str) -> anyhow::Result<String> {
    let count = |start: &str| ledger.lines().filter(|line| line.starts_with(start)).count();
    let runs = (count("started long"), count("finished long"));
    if runs != (1, 1) {
        bail!("the task in flight was started {} and finished {} times instead of once", runs.0, runs.1);
    }
    let Some(next) = ledger.lines().find_map(|line| line.strip_prefix("finished next: ")) else {
        bail!("the next task has left no note");
    };
    if !next.contains("'hubspot'") {
        bail!("the next task still writes the old label: {next}");
    }
    Ok(next.to_owned())
}

/// Characters of a time in supervisord's log.
const TIME_CHARS: usize = 23;

fn down(log: &str) -> anyhow::Result<(String, String)> {
    let of = |words: &str| -> Vec<String> {
        let lines = log.lines().filter(|line| line.contains(words));
        lines.map(|line| line.chars().take(TIME_CHARS).collect()).collect()
    };
    match (of(" exited: worker ").as_slice(), of(" success: worker entered RUNNING ").as_slice()) {
        ([ended], [_, back]) => Ok((ended.clone(), back.clone())),
        (ended, up) => bail!("it has ended {} times and come up {} times, not once and twice", ended.len(), up.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn the_edit_keeps_size_and_time() {
        let stage = Stage::set().unwrap();
        let shop = Shop::write(&stage, "web-1", Path::new("/venv")).unwrap();
        let path = stage.directory().join("web-1/app/enums.py");
        let before = fs::metadata(&path).unwrap();
        shop.flip().unwrap();
        let after = fs::metadata(&path).unwrap();
        assert_eq!(
            (before.size(), before.mtime(), before.mtime_nsec()),
            (after.size(), after.mtime(), after.mtime_nsec())
        );
        assert!(fs::read_to_string(&path).unwrap().contains("HUBSPOT = \"hubspot\""));
    }

    #[test]
    fn proof_needs_one_whole_run_and_the_new_label() {
        let check = |ledger: &str, holds: bool| assert_eq!(new_label(ledger).is_ok(), holds, "{ledger}");
        check("started long\nfinished long: inserts 'HUBSPOT'\nstarted next\nfinished next: inserts 'hubspot'\n", true);
        check("started long\nfinished long: inserts 'HUBSPOT'\nfinished next: inserts 'HUBSPOT'\n", false);
        check("started long\nstarted long\nfinished long: x\nfinished next: inserts 'hubspot'\n", false);
        check("started long\nfinished next: inserts 'hubspot'\n", false);
        check("", false);
    }

    #[test]
    fn one_restart_is_one_span_of_being_down() {
        let first = "2026-01-31 12:00:01,100 INFO success: worker entered RUNNING state, process has stayed up\n";
        let ended = "2026-01-31 12:00:05,200 INFO exited: worker (exit status 0; expected)\n";
        let back = "2026-01-31 12:00:07,300 INFO success: worker entered RUNNING state, process has stayed up\n";
        let span = down(&format!("{first}{ended}{back}")).unwrap();
        assert_eq!(span, ("2026-01-31 12:00:05,200".to_owned(), "2026-01-31 12:00:07,300".to_owned()));
        down(first).unwrap_err();
        down(&format!("{first}{ended}{back}{ended}{back}")).unwrap_err();
    }
}
