//! What a command line says about a process: is it a worker, of what kind, and whose code does it run?
//!
//! A command line is chosen by the process: it decides what a worker is called and how it would be drained,
//! never whether it is fresh.

use crate::process::Kind;
use crate::procfs::is_python_program;

/// What a Python process is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nature {
    /// It may hold an app's classes.
    Worker(Kind),
    /// A helper that `multiprocessing` or `loky` started: part of its parent's unit, whatever that is.
    Offspring,
    /// It starts others and brings them back.
    Keeper(&'static str),
}

/// What an interpreter was told to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry<'a> {
    /// The last part of the path of a script or of a program that is no interpreter.
    Script(&'a str),
    /// `-m`.
    Module(&'a str),
    /// `-c`.
    Code(&'a str),
    /// A title written over the command line.
    Title(&'a str),
    /// Standard input, or nothing.
    Nothing,
}

/// A command line, taken apart: what runs, and its arguments.
fn entry(command: &[String]) -> (Entry<'_>, &[String]) {
    let Some((program, rest)) = command.split_first() else {
        return (Entry::Nothing, &[]);
    };
    if is_title(command) {
        return (Entry::Title(program), rest);
    }
    if !is_python_program(program) || leaf(program).starts_with("uwsgi") {
        return (Entry::Script(leaf(program)), rest);
    }
    interpreter_arguments(rest)
}

/// Tells whether the command line was overwritten with a title.
pub(crate) fn is_title(command: &[String]) -> bool {
    match command {
        [only] => only.starts_with('[') || (only.contains(' ') && !only.starts_with('/')),
        _ => false,
    }
}

/// Takes the options of an interpreter apart, as `Python/getopt.c` does: flags may be joined, `-c`, `-m`, `-W`
/// and `-X` take the rest of their word or the next one.
fn interpreter_arguments(mut rest: &[String]) -> (Entry<'_>, &[String]) {
    while let Some((word, after)) = rest.split_first() {
        rest = after;
        if word == "--check-hash-based-pycs" {
            rest = after.get(1..).unwrap_or_default();
            continue;
        }
        if word.starts_with("--") {
            continue;
        }
        let Some(flags) = word.strip_prefix('-').filter(|flags| !flags.is_empty()) else {
            let leaf = leaf(word);
            return match leaf {
                "-" => (Entry::Nothing, rest),
                // `python -m celery` in a version that shows the file.
                "__main__.py" => (Entry::Module(parent_leaf(word)), rest),
                _ => (Entry::Script(leaf), rest),
            };
        };
        let taking = flags.char_indices().find(|(_, flag)| matches!(flag, 'c' | 'm' | 'W' | 'X'));
        let Some((at, flag)) = taking else { continue };
        let joined = flags.get(at + 1..).filter(|value| !value.is_empty());
        let value = if let Some(value) = joined {
            value
        } else {
            let Some((next, after)) = rest.split_first() else { return (Entry::Nothing, &[]) };
            rest = after;
            next
        };
        match flag {
            'c' => return (Entry::Code(value), rest),
            'm' => return (Entry::Module(value), rest),
            _ => {}
        }
    }
    (Entry::Nothing, &[])
}

/// Tells what the process of this command line is for.
pub(crate) fn recognise(command: &[String]) -> Nature {
    let (entry, arguments) = entry(command);
    match entry {
        Entry::Title(title) => title_nature(title),
        Entry::Script(name) => tool(name, arguments),
        Entry::Module(name) if name.starts_with("joblib.externals.loky.") => Nature::Offspring,
        Entry::Module(name) => module(name, arguments),
        Entry::Code(code) if is_offspring(code) => Nature::Offspring,
        Entry::Code(_) | Entry::Nothing => Nature::Worker(Kind::Python),
    }
}

fn is_offspring(code: &str) -> bool {
    ["from multiprocessing.", "from billiard.", "from loky.", "from joblib.externals.loky."]
        .iter()
        .any(|start| code.starts_with(start))
}

/// Tells whether this is a process that `multiprocessing`, billiard or loky keeps beside the program for as long as that
/// runs: it counts shared resources or forks workers, and is none itself.
///
/// The workers that a fork server has forked have its command line: those are its children, not the program's.
pub(crate) fn serves_its_parent(command: &[String]) -> bool {
    let (Entry::Code(code), _) = entry(command) else { return false };
    let module = code.strip_prefix("from ").and_then(|rest| rest.split_once(" import main;"));
    let Some((module, _)) = module.filter(|_| is_offspring(code)) else { return false };
    let last = module.rsplit('.').next().unwrap_or_default();
    // The semaphore tracker: billiard, and Python up to 3.7.
    matches!(last, "resource_tracker" | "semaphore_tracker" | "forkserver")
}

fn title_nature(title: &str) -> Nature {
    let kinds = [
        ("[celeryd: ", Kind::Celery),
        ("[celery beat]", Kind::Beat),
        ("gunicorn: ", Kind::Gunicorn),
        ("uWSGI ", Kind::Uwsgi),
        ("rq:worker:", Kind::Rq),
        ("rq: ", Kind::Rq),
    ];
    if let Some((_, kind)) = kinds.iter().find(|(start, _)| title.starts_with(start)) {
        return Nature::Worker(*kind);
    }
    // Some write their command line anew as one text.
    let words: Vec<String> = title.split_ascii_whitespace().map(str::to_owned).collect();
    if is_title(&words) { Nature::Worker(Kind::Python) } else { recognise(&words) }
}

fn module(name: &str, arguments: &[String]) -> Nature {
    let name = name.strip_suffix(".__main__").unwrap_or(name);
    match name {
        "celery.bin.celery" => tool("celery", arguments),
        "celery.bin.worker" => Nature::Worker(Kind::Celery),
        "celery.bin.beat" => Nature::Worker(Kind::Beat),
        "gunicorn.app.wsgiapp" => Nature::Worker(Kind::Gunicorn),
        "huey.bin.huey_consumer" => Nature::Worker(Kind::Huey),
        "rq.cli" | "rq.cli.cli" => tool("rq", arguments),
        "waitress" => Nature::Worker(Kind::Waitress),
        "supervisor.supervisord" => Nature::Keeper("supervisord"),
        "circus" | "circus.circusd" => Nature::Keeper("circus"),
        "django" => tool("manage.py", arguments),
        // A module that shares its name with a script of another meaning.
        "rqworker" | "celeryd" | "manage" | "supervisord" => Nature::Worker(Kind::Python),
        _ => tool(name, arguments),
    }
}

fn tool(name: &str, arguments: &[String]) -> Nature {
    let worker = Nature::Worker;
    match name {
        "celery" => celery(arguments),
        "celeryd" => worker(Kind::Celery),
        "celerybeat" => worker(Kind::Beat),
        "flower" => worker(Kind::Flower),
        "gunicorn" | "gunicorn3" => worker(Kind::Gunicorn),
        "uvicorn" => worker(Kind::Uvicorn),
        "uwsgi" | "pyuwsgi" => uwsgi(arguments),
        _ if name.starts_with("uwsgi-") || name.starts_with("uwsgi_python") => uwsgi(arguments),
        "hypercorn" => worker(Kind::Hypercorn),
        "granian" => worker(Kind::Granian),
        "daphne" => worker(Kind::Daphne),
        "waitress-serve" => worker(Kind::Waitress),
        "rqworker" => worker(Kind::Rq),
        "rq" => match first_positional(arguments, &["-u", "--url", "-c", "--config", "-P", "--path"]) {
            Some("worker" | "worker-pool") => worker(Kind::Rq),
            _ => worker(Kind::Python),
        },
        "dramatiq" | "dramatiq-gevent" => worker(Kind::Dramatiq),
        "huey_consumer" | "huey_consumer.py" => worker(Kind::Huey),
        "arq" => worker(Kind::Arq),
        "taskiq" => match first_positional(arguments, &[]) {
            Some("worker" | "scheduler") => worker(Kind::Taskiq),
            _ => worker(Kind::Python),
        },
        "manage.py" | "django-admin" => match first_positional(arguments, &["--settings", "--pythonpath"]) {
            Some("rqworker" | "rqworker-pool") => worker(Kind::Rq),
            Some("run_huey" | "djangohuey") => worker(Kind::Huey),
            Some("rundramatiq") => worker(Kind::Dramatiq),
            _ => worker(Kind::Python),
        },
        "supervisord" => Nature::Keeper("supervisord"),
        "circusd" => Nature::Keeper("circus"),
        "honcho" => Nature::Keeper("honcho"),
        _ => worker(Kind::Python),
    }
}

/// Options of `celery` itself whose value is the next word (`celery/bin/celery.py`, 5.x).
const CELERY_VALUES: [&str; 9] =
    ["-A", "--app", "-b", "--broker", "--result-backend", "--loader", "--config", "--workdir", "-P"];

fn celery(arguments: &[String]) -> Nature {
    match first_positional(arguments, &CELERY_VALUES) {
        Some("worker") => Nature::Worker(Kind::Celery),
        Some("beat") => Nature::Worker(Kind::Beat),
        Some("flower") => Nature::Worker(Kind::Flower),
        _ => Nature::Worker(Kind::Python),
    }
}

fn uwsgi(arguments: &[String]) -> Nature {
    let is_emperor = arguments.iter().any(|word| word == "--emperor" || word.starts_with("--emperor="));
    if is_emperor { Nature::Keeper("uwsgi-emperor") } else { Nature::Worker(Kind::Uwsgi) }
}

fn first_positional<'a>(arguments: &'a [String], with_value: &[&str]) -> Option<&'a str> {
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        if with_value.contains(&word.as_str()) {
            words.next();
        } else if !word.starts_with('-') {
            return Some(word);
        }
    }
    None
}

/// Returns the top-level packages that hold the entry point of a command line, or its `-A` target.
///
/// `celery -A shop.celery:app worker` names `shop`, `gunicorn web.wsgi:app` names `web`, `python -m pkg.mod`
/// names `pkg`. Works on titles too, as far as they tell. Empty where nothing is named.
pub fn app_packages(command: &[String]) -> Vec<String> {
    let (entry, arguments) = entry(command);
    let mut packages = Vec::new();
    let mut add = |target: &str| {
        let dotted = target.split(':').next().unwrap_or_default();
        let package = dotted.split('.').next().unwrap_or_default().to_owned();
        if is_dotted(dotted) && !packages.contains(&package) {
            packages.push(package);
        }
    };
    let title_words: Vec<String>;
    let (kind, arguments) = match (recognise(command), entry) {
        (Nature::Worker(kind), Entry::Title(title)) => {
            let separators = |c: char| c.is_ascii_whitespace() || matches!(c, '(' | ')' | '[' | ']');
            title_words = title.split(separators).filter(|word| !word.is_empty()).map(str::to_owned).collect();
            // In `gunicorn: master [web:app]` and `[celeryd: w1@box:MainProcess]` the second word names one thing each.
            (kind, title_words.as_slice())
        }
        (Nature::Worker(Kind::Python), Entry::Module(module)) => {
            add(module);
            return packages;
        }
        (Nature::Worker(kind), _) => (kind, arguments),
        _ => return packages,
    };
    match kind {
        Kind::Celery | Kind::Beat | Kind::Flower => {
            if let Some(target) = option_value(arguments, "-A", "--app") {
                add(target);
            }
        }
        Kind::Rq | Kind::Python => {}
        _ => {
            arguments.iter().filter(|word| is_target(word)).for_each(|word| add(word));
            let bare = match kind {
                Kind::Gunicorn => arguments.last().map(String::as_str),
                Kind::Dramatiq | Kind::Arq | Kind::Huey => {
                    arguments.iter().map(String::as_str).find(|word| is_dotted(word))
                }
                Kind::Uwsgi => option_value(arguments, "-w", "--module"),
                _ => None,
            };
            bare.into_iter().for_each(&mut add);
        }
    }
    packages
}

/// Returns what tells one worker from another both before and after it wrote a title over its command line;
/// `None` for kinds whose titles say nothing of it.
///
/// Celery's title repeats its arguments in parentheses (`celery/platforms.py`, `strargv`), gunicorn's its
/// `proc_name` in brackets, which is the app unless `--name` says otherwise.
pub(super) fn label(kind: Kind, command: &[String]) -> Option<String> {
    let (entry, arguments) = entry(command);
    let between = |title: &str, open: char, close: char| {
        let inner = title.split_once(open)?.1.rsplit_once(close)?.0;
        Some(inner.to_owned())
    };
    match (kind, entry) {
        (Kind::Celery | Kind::Beat | Kind::Flower, Entry::Title(title)) => between(title, '(', ')'),
        (Kind::Celery | Kind::Beat | Kind::Flower, Entry::Script("manage.py")) => {
            Some(arguments.get(1..).unwrap_or_default().join(" "))
        }
        (Kind::Celery | Kind::Beat | Kind::Flower, _) => Some(arguments.join(" ")),
        // After a change of binary the new master marks its name: `[web:app.2]`.
        (Kind::Gunicorn, Entry::Title(title)) => {
            between(title, '[', ']').map(|name| name.strip_suffix(".2").unwrap_or(&name).to_owned())
        }
        (Kind::Gunicorn, _) => {
            option_value(arguments, "-n", "--name").or(arguments.last().map(String::as_str)).map(str::to_owned)
        }
        _ => None,
    }
}

fn option_value<'a>(arguments: &'a [String], short: &str, long: &str) -> Option<&'a str> {
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        if word == short || word == long {
            return words.next().map(String::as_str);
        }
        if let Some(value) = word.strip_prefix(long).and_then(|rest| rest.strip_prefix('=')) {
            return Some(value);
        }
        if let Some(value) = word.strip_prefix(short).filter(|value| !word.starts_with("--") && !value.is_empty()) {
            return Some(value.strip_prefix('=').unwrap_or(value));
        }
    }
    None
}

/// Tells whether a word is `package.module:name`; an address such as `localhost:8000` is not.
fn is_target(word: &str) -> bool {
    word.split_once(':').is_some_and(|(module, name)| {
        is_dotted(module) && name.starts_with(|c: char| c.is_alphabetic() || c == '_') && !name.starts_with("//")
    })
}

fn is_dotted(text: &str) -> bool {
    let identifier = |part: &str| {
        part.starts_with(|c: char| c.is_alphabetic() || c == '_')
            && part.chars().all(|c| c.is_alphanumeric() || c == '_')
    };
    !text.is_empty() && text.split('.').all(identifier)
}

/// Returns the configuration file of a supervisord as its command line names it.
pub(super) fn supervisord_option(command: &[String]) -> Option<&str> {
    match recognise(command) {
        Nature::Keeper("supervisord") => option_value(entry(command).1, "-c", "--configuration"),
        _ => None,
    }
}

/// Returns where a supervisord without `-c` looks for its configuration, in order (its manual, "Running
/// Supervisor"); `None` for anything else.
pub(super) fn supervisord_places(command: &[String], cwd: Option<&str>) -> Option<Vec<String>> {
    if recognise(command) != Nature::Keeper("supervisord") || supervisord_option(command).is_some() {
        return None;
    }
    // The script: the program itself, or the interpreter's first argument that is a path.
    let script = command.iter().take(8).find(|word| leaf(word) == "supervisord" && word.contains('/'));
    let beside = script.and_then(|script| script.rsplit_once('/')).map(|(directory, _)| directory);
    let mut places = Vec::new();
    if let Some(directory) = beside.filter(|directory| directory.starts_with('/')) {
        let above = directory.rsplit_once('/').map_or("", |(above, _)| above);
        places.push(format!("{above}/etc/supervisord.conf"));
        places.push(format!("{above}/supervisord.conf"));
    }
    if let Some(cwd) = cwd {
        let cwd = cwd.trim_end_matches('/');
        places.push(format!("{cwd}/supervisord.conf"));
        places.push(format!("{cwd}/etc/supervisord.conf"));
    }
    places.push("/etc/supervisord.conf".to_owned());
    places.push("/etc/supervisor/supervisord.conf".to_owned());
    Some(places)
}

fn leaf(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn parent_leaf(path: &str) -> &str {
    path.rsplit('/').nth(1).unwrap_or(path)
}

#[cfg(test)]
mod tests;
