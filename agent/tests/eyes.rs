//! What the eyes keep between two looks, and what makes them look again.

#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use unstale_agent::child::Program;
use unstale_agent::eyes::{Eyes, LookOptions, Sight};
use unstale_agent::reader;
use unstale_protocol::ids::{Pid, ProcessIdentity};

const PART: &str = env!("CARGO_BIN_EXE_unstale-part");

/// A process that is killed when the test ends, however it ends.
struct Started(std::process::Child);

impl Drop for Started {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Starts Python and waits until it has said one line.
fn python(directory: &Path, program: &str) -> Started {
    let mut command = Command::new("python3");
    command.args(["-c", program]).current_dir(directory).env("PWD", directory);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3 (apt-get install python3)");
    let said = child.stdout.take().expect("pipe");
    BufReader::new(said).read_line(&mut String::new()).expect("a line");
    Started(child)
}

fn eyes() -> Eyes {
    let program = |part: &str| Program { path: PART.into(), args: vec![part.to_owned()] };
    Eyes::new(program("__reader"), program("__parser"))
}

/// Looks at everything, or at what is new, and returns what is known of one process.
async fn look(eyes: &mut Eyes, identity: ProcessIdentity, again: bool) -> Arc<Sight> {
    let listed = eyes.units().await.expect("units");
    let mut units = listed.units.clone();
    units.retain(|unit| unit.processes.iter().any(|process| process.identity == identity));
    eyes.look(&units, &LookOptions::default(), &[], again).await;
    Arc::clone(eyes.seen(&identity).expect("it is seen"))
}

/// The source of the module's only enum, as it is shown.
fn shown(sight: &Sight) -> String {
    format!("{:?}", sight.code.modules.get("shop.enums").expect("the module").source.enums)
}

#[tokio::test(flavor = "current_thread")]
async fn a_view_of_code_is_kept_until_any_file_behind_it_changes() {
    let directory = tempfile::tempdir().expect("directory");
    let write = |name: &str, text: &str| fs::write(directory.path().join("shop").join(name), text).expect("written");
    fs::create_dir(directory.path().join("shop")).expect("directory");
    write("__init__.py", "");
    write("labels.py", "LABEL = 'first'\n");
    write("enums.py", "import enum\nfrom shop.labels import LABEL\nclass Crm(enum.Enum):\n    HUBSPOT = LABEL\n");
    let program = "import sys, time\nsys.dont_write_bytecode = True\nfrom shop import enums\n\
        print('up', flush=True)\ntime.sleep(600)\n";
    let started = python(directory.path(), program);
    let identity = reader::identify(Pid(started.0.id())).expect("identity");
    let mut eyes = eyes();
    let first = look(&mut eyes, identity, true).await;
    assert!(shown(&first).contains("first"), "{}", shown(&first));
    look(&mut eyes, identity, false).await;
    let second = look(&mut eyes, identity, true).await;
    assert!(Arc::ptr_eq(&first.code, &second.code), "nothing has changed");
    // A module that the enum's module takes a name from, and that holds no enum itself.
    write("labels.py", "LABEL = 'second'\n");
    let third = look(&mut eyes, identity, true).await;
    assert!(shown(&third).contains("second"), "{}", shown(&third));
    let fourth = look(&mut eyes, identity, true).await;
    assert!(Arc::ptr_eq(&third.code, &fourth.code), "nothing has changed");
    write("enums.py", "import enum\nclass Crm(enum.Enum):\n    HUBSPOT = 'third'\n");
    let fifth = look(&mut eyes, identity, true).await;
    assert!(shown(&fifth).contains("third"), "{}", shown(&fifth));
    fs::remove_file(directory.path().join("shop/enums.py")).expect("removed");
    let sixth = look(&mut eyes, identity, true).await;
    let module = sixth.code.modules.get("shop.enums").expect("the module");
    assert!(module.problem.as_ref().is_some_and(|why| why.contains("its source is gone")), "{module:?}");
}
