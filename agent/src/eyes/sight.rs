//! Looking at processes: their memory, and the code of their next start behind it.
//!
//! While the code of one process is looked up, parsed and evaluated, the reader reads the memory of the next.

use super::{Eyes, LookOptions, Sight, code, lies_below, may_lie_below};
use crate::discover;
use crate::judge::CodeView;
use crate::parser::Parser;
use crate::process::{Process, Unit};
use crate::reader::Reader;
use crate::reading::{Outcome, ReadOptions, Reading};
use std::sync::Arc;
use tokio::sync::mpsc;
use unstale_protocol::ids::ProcessIdentity;
use unstale_protocol::manifest::Manifest;

use super::summaries::Summaries;
use super::supervisors::Supervisors;

/// How many readings may wait for their code to be looked at.
const AHEAD_MAX: usize = 4;

/// What is asked in a look.
#[derive(Clone, Copy)]
struct Question<'a> {
    options: &'a LookOptions,
    manifests: &'a [Arc<Manifest>],
}

impl Eyes {
    /// Looks at these processes.
    pub(super) async fn sights_of(
        &mut self,
        due: &[(&Unit, &Process)],
        options: &LookOptions,
        manifests: &[Arc<Manifest>],
    ) -> Vec<(ProcessIdentity, Arc<Sight>)> {
        let question = Question { options, manifests };
        let (read, mut readings) = mpsc::channel(AHEAD_MAX);
        let Self { reader, parser, summaries, supervisors, is_in_a_hurry, .. } = self;
        let reader: &Reader = reader;
        let read_all = async move {
            for (unit, process) in due {
                let reading = reader.turn().await.read(process.identity, &question.first(unit, process)).await;
                if read.send(reading).await.is_err() {
                    return;
                }
                // What was read comes first: its files are asked for before the next process.
                tokio::task::yield_now().await;
            }
        };
        let see_all = async {
            if *is_in_a_hurry {
                parser.prepare();
            }
            let mut sights = Vec::with_capacity(due.len());
            let mut code = Coder { reader, parser, summaries, supervisors, question };
            for (unit, process) in due {
                let Some(reading) = readings.recv().await else { break };
                sights.push((process.identity, Arc::new(code.sight(unit, process, reading).await)));
            }
            sights
        };
        tokio::join!(read_all, see_all).1
    }

    pub(super) fn read_options(
        unit: &Unit,
        process: &Process,
        options: &LookOptions,
        manifests: &[Arc<Manifest>],
    ) -> ReadOptions {
        let command = unit.root().map_or(&process.command, |root| &root.command);
        let origins = manifests.iter().filter_map(|manifest| manifest.origin.as_ref()).flat_map(|origin| &origin.paths);
        ReadOptions {
            all: options.all,
            app_packages: discover::app_packages(command),
            app_roots: options.roots.iter().chain(origins).cloned().collect(),
            list_modules: false,
            // A forked child shares most of its pages: reading through `mem` copies none of them.
            through_mem: process.identity.pid != unit.root().unwrap_or(process).identity.pid,
        }
    }
}

impl Question<'_> {
    /// Returns what a process is asked first.
    fn first(self, unit: &Unit, process: &Process) -> ReadOptions {
        let asked = Eyes::read_options(unit, process, self.options, self.manifests);
        // What plainly runs elsewhere will hardly lie below a root: all its modules are looked at in one go.
        let list_modules = !self.options.roots.is_empty() && !may_lie_below(process, &self.options.roots);
        ReadOptions { list_modules, ..asked }
    }
}

/// Who looks at code.
struct Coder<'a> {
    reader: &'a Reader,
    parser: &'a mut Parser,
    summaries: &'a mut Summaries,
    supervisors: &'a mut Supervisors,
    question: Question<'a>,
}

impl Coder<'_> {
    /// Looks at the code of a process that was read, and reads it once more where that was not enough.
    async fn sight(&mut self, unit: &Unit, process: &Process, reading: Reading) -> Sight {
        let asked = self.question.first(unit, process);
        let sight = self.behind(unit, process, reading).await;
        let roots = &self.question.options.roots;
        // Where what holds an enum lies elsewhere, any other module of its code may lie below a root.
        if asked.list_modules
            || roots.is_empty()
            || sight.reading.outcome != Outcome::Complete
            || lies_below(&sight.code, roots)
        {
            return sight;
        }
        let wide = ReadOptions { list_modules: true, ..asked };
        let reading = self.reader.turn().await.read(process.identity, &wide).await;
        self.behind(unit, process, reading).await
    }

    async fn behind(&mut self, unit: &Unit, process: &Process, reading: Reading) -> Sight {
        let code = match &reading.outcome {
            Outcome::Complete => {
                let supervisor_directory = match self.supervisors.directory(&unit.supervisor).await {
                    Ok(directory) => directory,
                    Err(why) => {
                        let code = Arc::new(CodeView { problem: Some(why), ..CodeView::default() });
                        return Sight { reading, code };
                    }
                };
                let mut code = code::Code {
                    reader: self.reader,
                    parser: self.parser,
                    summaries: self.summaries,
                    process,
                    unit_root: unit.root().unwrap_or(process),
                    next_root: self.question.options.next_root.as_deref(),
                    supervisor_directory,
                };
                code.view(&reading, self.question.manifests).await
            }
            _ => Arc::new(CodeView::default()),
        };
        Sight { reading, code }
    }
}
