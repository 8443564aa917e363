//! One walk over one process: from the runtime to the answer, and the check that all of it held still.

use super::Error;
use super::bindings;
use super::cache::{Known, KnownInterpreter};
use super::enums;
use super::facts;
use super::heap::Heap;
use super::image::Image;
use super::layout::Layout;
use super::locate::{self, InterpreterAt};
use super::memo::Memo;
use super::modules::{Module, Modules, Rules};
use super::source::{Buffers, Source, Space, Span};
use crate::reading::{Cost, Interpreter, LoadedEnum, LoadedModule, MappedClass, ReadOptions};
use std::collections::BTreeSet;
use std::sync::Arc;

/// What a walk found.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) interpreter: Interpreter,
    pub(crate) modules: Vec<LoadedModule>,
    pub(crate) enums: Vec<LoadedEnum>,
    pub(crate) mapped: Vec<MappedClass>,
}

/// A walk that came to an answer.
pub(crate) struct Walked {
    pub(crate) answer: Arc<Answer>,
    pub(crate) known: Known,
    /// All that was looked at; `None` where that is too much, or something was not there.
    pub(crate) memo: Option<Memo>,
}

/// One try.
pub(crate) struct Attempt<'a> {
    heap: Heap<'a>,
    options: &'a ReadOptions,
    unbound: Vec<(u64, Vec<Span>)>,
    /// Some interpreter has `enum`, and not yet its classes.
    is_importing_enum: bool,
}

impl<'a> Attempt<'a> {
    pub(crate) fn new(source: &'a dyn Source, options: &'a ReadOptions, buffers: Buffers) -> Self {
        let space = Space::new(source, buffers);
        Self { heap: Heap::new(space, Layout::any()), options, unbound: Vec::new(), is_importing_enum: false }
    }

    /// Ends the try.
    pub(crate) fn finish(self) -> (Buffers, Cost) {
        self.heap.space.finish()
    }

    /// Ends the try with a recording of what it looked at.
    pub(crate) fn into_image(mut self) -> Result<Image, Error> {
        Image::of(&mut self.heap.space)
    }

    /// Tells whether what has been guarded so far is no longer what it was.
    pub(crate) fn has_moved(&mut self) -> bool {
        let guards = self.heap.space.take_guards(0);
        !guards.is_empty() && matches!(self.heap.space.holds_still(&guards), Ok(false))
    }

    /// Walks, starting from what is known of the process or of a relative; returns what is known afterwards.
    /// Whether memory held still meanwhile is for the caller to find out: all that was looked at did, by the memo, or
    /// what was guarded did, by [`Self::check`].
    pub(crate) fn run(&mut self, known: Option<Known>) -> Result<Walked, Error> {
        let warm = match known {
            Some(known) => self.still_valid(known)?,
            None => None,
        };
        let runtime = match &warm {
            Some(known) => known.runtime,
            None => locate::runtime(&mut self.heap.space)?,
        };
        self.heap.layout = runtime.layout;
        let interpreters = locate::interpreters(&mut self.heap, runtime)?;
        let mut answer = None;
        let mut learnt = Vec::new();
        for at in interpreters {
            let earlier = warm.as_ref().and_then(|known| {
                known.interpreters.iter().find(|known| known.address == at.address && known.modules == at.modules)
            });
            if at.modules == 0 || at.sysdict == 0 {
                continue;
            }
            match self.interpreter(&at, earlier, &mut answer) {
                Ok(known) => learnt.extend(known),
                // A second interpreter that is only being made does not spoil the first.
                Err(Error::Starting(_)) if answer.is_some() => {}
                Err(error) => return Err(error),
            }
        }
        let mut answer = answer.ok_or_else(|| Error::Starting("the interpreter is not there yet".to_owned()))?;
        if learnt.is_empty() {
            let importing = || Error::Starting("enum is not imported yet".to_owned());
            return Err(if self.is_importing_enum { importing() } else { Error::NoEnum });
        }
        answer.enums.sort_by(|a, b| a.name.cmp(&b.name).then(a.address.cmp(&b.address)));
        let answer = Arc::new(answer);
        self.heap.space.look_at_guards(self.unbound.iter().flat_map(|(_, guards)| guards))?;
        let memo = Memo::of(&mut self.heap.space, Arc::clone(&answer))?;
        Ok(Walked { answer, known: Known { runtime, interpreters: learnt }, memo })
    }

    /// Checks what is known of this process or of a relative: the interpreters are where they were, and
    /// `enum.Enum` is.
    fn still_valid(&mut self, known: Known) -> Result<Option<Known>, Error> {
        self.heap.layout = known.runtime.layout;
        match self.holds(&known) {
            Ok(true) => Ok(Some(known)),
            Ok(false) => Ok(None),
            Err(error @ (Error::Denied | Error::Gone | Error::Limit(_))) => Err(error),
            Err(_) => Ok(None),
        }
    }

    fn holds(&mut self, known: &Known) -> Result<bool, Error> {
        let space = &mut self.heap.space;
        space.want(known.runtime.address, 1024);
        for interpreter in &known.interpreters {
            space.want(interpreter.address, 8);
            space.want(interpreter.root, known.runtime.layout.heap_type_end());
            for (_, address) in &interpreter.names {
                space.want_in_page(*address, 80);
            }
        }
        let found = locate::interpreters(&mut self.heap, known.runtime)?;
        for interpreter in &known.interpreters {
            let same = found.iter().any(|at| at.address == interpreter.address && at.modules == interpreter.modules);
            if !same || !enums::is_root(&mut self.heap, interpreter.root)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads one interpreter into the answer; `None` where it has no enums.
    fn interpreter(
        &mut self,
        at: &InterpreterAt,
        earlier: Option<&KnownInterpreter>,
        answer: &mut Option<Answer>,
    ) -> Result<Option<KnownInterpreter>, Error> {
        let heap = &mut self.heap;
        heap.names.clear();
        let mut modules = Modules::read(heap, at.modules)?;
        if let Some(earlier) = earlier {
            // An address counts only if the name is still what lies there.
            for (name, address) in &earlier.names {
                if heap.key_text(*address).is_ok_and(|text| text.is_some_and(|text| &*text == *name)) {
                    heap.names.push((name, *address));
                }
            }
        }
        let facts = facts::read(heap, at.sysdict, &modules)?;
        let os_file = facts::module_text(heap, &modules, "os", "__file__")?;
        let version = heap.layout.version.to_string();
        let rules = Rules::new(self.options, &version, &facts.base_prefix, os_file.as_deref());
        if self.options.list_modules || self.options.all {
            modules.place_all(heap, &rules)?;
        } else if let Some(main) = modules.above("__main__") {
            modules.place(heap, &rules, &[main])?;
        }
        let answer = answer.get_or_insert_with(|| Answer {
            interpreter: facts,
            modules: Vec::new(),
            enums: Vec::new(),
            mapped: Vec::new(),
        });
        let root = match enums::root(heap, &modules) {
            Ok(root) => root,
            Err(Error::NoEnum) => return Ok(None),
            Err(Error::Starting(_)) => {
                self.is_importing_enum = true;
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let found = enums::read(heap, &mut modules, &rules, root)?;
        let mapped = bindings::read(heap, &mut modules, &rules)?;
        let holding: BTreeSet<usize> = found.modules.iter().chain(&mapped.modules).copied().collect();
        let holding: Vec<usize> = holding.into_iter().collect();
        let listed = listed(&modules, &rules, &holding);
        answer.modules.extend(modules.describe(heap, &listed)?);
        modules.note_names(heap, &rules)?;
        for (index, guards) in found.unbound {
            if let Some(class) = found.enums.get(index) {
                self.unbound.push((class.address, guards));
            }
        }
        answer.enums.extend(found.enums);
        answer.mapped.extend(mapped.mapped);
        Ok(Some(KnownInterpreter { address: at.address, modules: at.modules, root, names: heap.names.clone() }))
    }

    /// Looks again at all that was guarded. What is bound must have held still; other classes that have not are
    /// left out.
    ///
    /// # Errors
    /// [`Error::Changed`] where something did not hold still.
    pub(crate) fn check(&mut self, answer: &mut Arc<Answer>) -> Result<(), Error> {
        let guards = self.heap.space.take_guards(0);
        if !self.heap.space.holds_still(&guards)? {
            self.heap.space.guard_all(guards);
            return Err(Error::Changed);
        }
        for (address, guards) in std::mem::take(&mut self.unbound) {
            if !self.heap.space.holds_still(&guards)? {
                Arc::make_mut(answer).enums.retain(|class| class.address != address);
            }
        }
        Ok(())
    }
}

/// Picks the modules to list.
fn listed(modules: &Modules, rules: &Rules<'_>, holding: &[usize]) -> Vec<usize> {
    let is_wanted = |(index, module): (usize, &Module)| {
        rules.wants(module.known.origin)
            && (rules.options.list_modules
                || &*module.known.name == "__main__"
                || holding.binary_search(&index).is_ok())
    };
    (0..).zip(&modules.list).filter(|pair| is_wanted(*pair)).map(|(index, _)| index).collect()
}
