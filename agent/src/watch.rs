//! Noticing that source directories changed, also behind a `current` link that is swapped.
//!
//! Events are hints: they say where to look again, never what changed, and a missed one costs time, not correctness.
//! A timed hint bounds that time where no event comes at all (NFS, overlays, a full queue). Called by the agent's
//! driver, which looks at the files itself.

mod links;

use links::{Watched, watched};
use notify::event::{CreateKind, EventKind, ModifyKind, RemoveKind};
use notify::{Config, Event, RecommendedWatcher, RecursiveMode, Watcher};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Sleep;

/// Events kept while nobody looks; when more come, everything is looked at again.
const EVENTS_MAX: usize = 1024;
/// How many quiet periods a tree that never rests is waited for.
const PATIENCE: u32 = 5;

/// How changes are noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchOptions {
    /// How long a tree must rest before it is worth a look: deploys copy many files.
    pub quiet: Duration,
    /// How often everything is worth a look although nothing was heard.
    pub fallback: Duration,
}

impl Default for WatchOptions {
    fn default() -> Self {
        Self { quiet: Duration::from_secs(2), fallback: Duration::from_mins(1) }
    }
}

/// Why changes cannot be noticed.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The kernel gives no watches at all.
    #[error("file changes cannot be watched: {0}; raise fs.inotify.max_user_instances with sysctl")]
    Start(#[source] notify::Error),
}

/// What is worth a look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dirty {
    /// The roots, as they were given.
    pub roots: BTreeSet<PathBuf>,
    /// Whether this is a guess rather than something seen: a timed hint, a lost event, or a root that cannot be watched.
    pub guessed: bool,
}

/// Watches source directories.
#[derive(Debug)]
pub struct Watch {
    options: WatchOptions,
    watcher: Option<RecommendedWatcher>,
    events: mpsc::Receiver<Event>,
    lost: Arc<AtomicBool>,
    roots: BTreeMap<PathBuf, Watched>,
    placed: BTreeMap<PathBuf, RecursiveMode>,
    problems: BTreeMap<PathBuf, String>,
    dirty: Dirty,
    /// A link or a missing directory has changed: watches must be placed anew.
    moved: bool,
    quiet: Option<Pin<Box<Sleep>>>,
    patience: Option<Pin<Box<Sleep>>>,
    fallback: Option<Pin<Box<Sleep>>>,
}

impl Watch {
    /// Begins to watch nothing.
    ///
    /// # Errors
    /// [`WatchError::Start`] where the kernel gives no watches.
    pub fn new(options: WatchOptions) -> Result<Self, WatchError> {
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let lost = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&lost);
        let handler = move |event: notify::Result<Event>| match event {
            Ok(event) if !is_relevant(&event) => {}
            Ok(event) => {
                let rescan = event.need_rescan();
                if sender.try_send(event).is_err() || rescan {
                    flag.store(true, Ordering::Release);
                }
            }
            Err(_) => flag.store(true, Ordering::Release),
        };
        // Links are followed by this module, which notices when they are swapped.
        let config = Config::default().with_follow_symlinks(false);
        let watcher = RecommendedWatcher::new(handler, config).map_err(WatchError::Start)?;
        Ok(Self {
            options,
            watcher: Some(watcher),
            events,
            lost,
            roots: BTreeMap::new(),
            placed: BTreeMap::new(),
            problems: BTreeMap::new(),
            dirty: Dirty::default(),
            moved: false,
            quiet: None,
            patience: None,
            fallback: None,
        })
    }

    /// Watches `roots` from now on, and no others. A root may not exist yet, or lead through links.
    pub async fn set_roots(&mut self, roots: BTreeSet<PathBuf>) {
        let same = self.roots.len() == roots.len() && roots.iter().all(|root| self.roots.contains_key(root));
        if same {
            return;
        }
        self.dirty.roots.retain(|root| roots.contains(root));
        self.roots = roots.into_iter().map(|root| (root, Watched::default())).collect();
        self.place().await;
    }

    /// Returns the roots that cannot be watched, and why; they are looked at by the clock only.
    pub fn problems(&self) -> &BTreeMap<PathBuf, String> {
        &self.problems
    }

    /// Waits until something is worth a look. Safe to cancel: what was heard is kept.
    pub async fn changed(&mut self) -> Dirty {
        loop {
            let fallback = self.options.fallback;
            let timer = self.fallback.get_or_insert_with(|| Box::pin(tokio::time::sleep(fallback)));
            tokio::select! {
                event = self.events.recv() => match event {
                    Some(event) => self.hear(&event),
                    // The watcher is gone: only the clock is left.
                    None => std::future::pending().await,
                },
                () = due(&mut self.quiet) => return self.settle().await,
                () = due(&mut self.patience) => return self.settle().await,
                () = timer.as_mut() => {
                    self.dirty.roots.extend(self.roots.keys().cloned());
                    self.dirty.guessed = true;
                    return self.settle().await;
                }
            }
        }
    }

    fn hear(&mut self, event: &Event) {
        let mut heard = BTreeSet::new();
        if self.lost.swap(false, Ordering::AcqRel) || event.need_rescan() || event.paths.is_empty() {
            heard.extend(self.roots.keys().cloned());
            self.dirty.guessed = true;
            self.moved = true;
        }
        for (root, watched) in &self.roots {
            if event.paths.iter().any(|path| watched.is_turned_by(path)) {
                self.moved = true;
                heard.insert(root.clone());
            } else if event.paths.iter().any(|path| watched.holds(path)) {
                heard.insert(root.clone());
            }
        }
        if heard.is_empty() {
            return;
        }
        self.dirty.roots.extend(heard);
        self.quiet = Some(Box::pin(tokio::time::sleep(self.options.quiet)));
        let patience = self.options.quiet * PATIENCE;
        self.patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
    }

    async fn settle(&mut self) -> Dirty {
        if self.moved || self.dirty.guessed {
            self.moved = false;
            self.place().await;
        }
        (self.quiet, self.patience, self.fallback) = (None, None, None);
        std::mem::take(&mut self.dirty)
    }

    /// Places watches where the roots lead now, and takes away those that nothing leads to any more.
    async fn place(&mut self) {
        let Some(mut watcher) = self.watcher.take() else { return };
        let roots: Vec<PathBuf> = self.roots.keys().cloned().collect();
        let mut placed = std::mem::take(&mut self.placed);
        // A tree of thousands of directories takes a moment, and a file system may hang.
        let work = tokio::task::spawn_blocking(move || {
            let roots: BTreeMap<PathBuf, Watched> =
                roots.into_iter().map(|root| (root.clone(), watched(&root))).collect();
            let problems = place(&mut watcher, &mut placed, &roots);
            (watcher, placed, roots, problems)
        });
        if let Ok((watcher, placed, roots, problems)) = work.await {
            self.watcher = Some(watcher);
            (self.placed, self.roots, self.problems) = (placed, roots, problems);
        }
    }
}

async fn due(timer: &mut Option<Pin<Box<Sleep>>>) {
    match timer {
        Some(timer) => timer.as_mut().await,
        None => std::future::pending().await,
    }
}

fn place(
    watcher: &mut RecommendedWatcher,
    placed: &mut BTreeMap<PathBuf, RecursiveMode>,
    roots: &BTreeMap<PathBuf, Watched>,
) -> BTreeMap<PathBuf, String> {
    let mut wanted: BTreeMap<PathBuf, RecursiveMode> = BTreeMap::new();
    for watched in roots.values() {
        for parent in &watched.parents {
            wanted.entry(parent.clone()).or_insert(RecursiveMode::NonRecursive);
        }
        if let Some(target) = &watched.target {
            wanted.insert(target.clone(), RecursiveMode::Recursive);
        }
    }
    for path in placed.keys().filter(|path| !wanted.contains_key(*path)) {
        // A directory that is gone took its watch along.
        drop(watcher.unwatch(path));
    }
    placed.clear();
    let mut failed: BTreeMap<PathBuf, String> = BTreeMap::new();
    for (path, mode) in wanted {
        // Placed again even where it was: a directory of the same name may be a new one.
        match watcher.watch(&path, mode) {
            Ok(()) => {
                placed.insert(path, mode);
            }
            Err(error) => {
                failed.insert(path, words(&error));
            }
        }
    }
    let mut problems = BTreeMap::new();
    for (root, watched) in roots {
        let why = watched.target.iter().chain(&watched.parents).find_map(|path| failed.get(path));
        if let Some(why) = why {
            problems.insert(root.clone(), why.clone());
        } else if watched.target.is_none() {
            problems.insert(root.clone(), "it does not exist".to_owned());
        }
    }
    problems
}

fn words(error: &notify::Error) -> String {
    match error.kind {
        notify::ErrorKind::MaxFilesWatch => {
            "the kernel allows no more watches; raise fs.inotify.max_user_watches with sysctl".to_owned()
        }
        _ => error.to_string(),
    }
}

/// Leaves out what cannot have changed code: reads, and writes to files of other kinds (logs, databases).
fn is_relevant(event: &Event) -> bool {
    if event.need_rescan() || event.paths.is_empty() {
        return true;
    }
    match event.kind {
        EventKind::Access(_) => false,
        EventKind::Create(CreateKind::File)
        | EventKind::Remove(RemoveKind::File)
        | EventKind::Modify(ModifyKind::Data(_) | ModifyKind::Metadata(_)) => {
            event.paths.iter().any(|path| is_code(path))
        }
        _ => true,
    }
}

/// Links and directories have no telling name; what has none of another kind counts.
fn is_code(path: &Path) -> bool {
    path.extension().is_none_or(|extension| matches!(extension.to_str(), Some("py" | "pyc" | "so" | "pth" | "zip")))
}
