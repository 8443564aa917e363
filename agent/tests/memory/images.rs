//! Recordings of every version: readable without an interpreter, and harmless whatever is broken in them.
//!
//! Made anew by `cargo test -p unstale-agent --test memory -- --ignored recordings_are_made_anew`.

use crate::python::{Running, fixtures, identity, interpreters};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use unstale_agent::memory::{self, Copied, Fault, Image, Mapping, Source, Span};
use unstale_agent::reading::{Outcome, ReadOptions, Reading, Standing};
use unstale_protocol::ids::{Pid, ProcessIdentity, PythonVersion};

const NOBODY: ProcessIdentity = ProcessIdentity { pid: Pid(1), start_ticks: 1, pid_namespace: 0 };

fn directory() -> PathBuf {
    fixtures().join("memory")
}

/// The recordings, by minor version.
fn recordings() -> Vec<(u8, Image)> {
    (8..=13)
        .map(|minor| {
            let path = directory().join(format!("cpython-3.{minor}.image"));
            let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            (minor, Image::decode(&bytes).expect("a recording"))
        })
        .collect()
}

fn read(source: &dyn Source) -> Reading {
    memory::read_source(source, NOBODY, &ReadOptions::default())
}

#[test]
fn every_version_is_read_without_its_interpreter() {
    for (minor, image) in recordings() {
        let reading = read(&image);
        assert_eq!(reading.outcome, Outcome::Complete, "3.{minor}");
        assert_eq!(reading.interpreter.map(|found| found.version), Some(PythonVersion::three(minor)));
        assert!(reading.enums.iter().all(|class| class.standing == Standing::Bound));
        let found: Vec<String> = reading
            .enums
            .iter()
            .map(|class| {
                let members = class.definition.members.iter();
                let members: Vec<_> =
                    members.map(|member| format!("{}={}", member.name, member.value.repr())).collect();
                let aliases = class.definition.aliases.iter();
                let aliases: Vec<_> = aliases.map(|alias| format!("{}->{}", alias.name, alias.canonical)).collect();
                format!("{}({}): {} {}", class.name, class.bases.join(", "), members.join(" "), aliases.join(" "))
            })
            .collect();
        let wanted = [
            "__main__:Access(Flag): R=4 W=2 RW=6 ",
            "__main__:Mixed(Enum): NESTED=(None, True, [0.5, {\"a\": b\"b\"}], frozenset({1})) ",
            "__main__:Number(IntEnum): ONE=1 HUGE=-1180591620717411303424 ",
            "__main__:Outer.Inner(Enum): A=1 ",
            "__main__:Plain(Enum): HUBSPOT=\"hubspot\" SALESFORCE=\"größer\" HS->HUBSPOT",
            "__main__:Text(str, Enum): FREE=\"free\" ",
        ];
        assert_eq!(found, wanted, "3.{minor}");
    }
}

/// Repeatable random numbers: `SplitMix64`.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}

/// Memory in which some words are broken.
struct Broken<'a> {
    image: &'a Image,
    seed: u64,
    /// One word in so many.
    rate: u64,
}

impl Broken<'_> {
    /// Breaks a word, always the same way.
    fn word(&self, address: u64, word: u64) -> u64 {
        let mut random = Random(self.seed.rotate_left(32) ^ address);
        if !random.next().is_multiple_of(self.rate) {
            return word;
        }
        match random.next() % 8 {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << 62,
            3 => address,
            4 => word ^ (1 << (random.next() % 64)),
            5 => word.wrapping_add(8),
            6 => random.next() % (1 << 20),
            _ => random.next(),
        }
    }
}

impl Source for Broken<'_> {
    fn read(&self, spans: &[Span], buffer: &mut [u8]) -> Result<Copied, Fault> {
        let copied = self.image.read(spans, buffer)?;
        let mut rest = &mut buffer[..copied.bytes];
        for span in spans {
            let (now, later) = rest.split_at_mut(span.len.min(rest.len()));
            let skip = usize::try_from(span.start.wrapping_neg() % 8).expect("less than 8").min(now.len());
            for (index, bytes) in now[skip..].chunks_exact_mut(8).enumerate() {
                let address = span.start + skip as u64 + index as u64 * 8;
                let word = u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
                bytes.copy_from_slice(&self.word(address, word).to_le_bytes());
            }
            rest = later;
        }
        Ok(copied)
    }

    fn mappings(&self) -> Result<Vec<Mapping>, Fault> {
        self.image.mappings()
    }
}

/// How many broken memories are tried: `UNSTALE_MEMORY_RUNS`, else 2,000.
#[expect(clippy::disallowed_methods, reason = "a longer run is asked for through the environment")]
fn runs() -> u64 {
    std::env::var("UNSTALE_MEMORY_RUNS").ok().and_then(|text| text.parse().ok()).unwrap_or(2_000)
}

#[test]
fn broken_memory_neither_panics_nor_costs_much() {
    let images = recordings();
    let mut refused = 0;
    for seed in 0..runs() {
        let (minor, image) = &images[usize::try_from(seed).expect("small") % images.len()];
        let rate = 20 << (seed / 6 % 11);
        let reading = read(&Broken { image, seed, rate });
        if reading.outcome != Outcome::Complete {
            refused += 1;
        }
        assert!(reading.cost.bytes <= 65 << 20, "3.{minor}, seed {seed}: {:?}", reading.cost);
        assert!(reading.cost.calls <= 6_000, "3.{minor}, seed {seed}: {:?}", reading.cost);
    }
    assert!(refused > 0, "nothing was ever broken");
}

/// Memory that is another one where it is looked at for the first time.
struct Fleeting {
    first: Image,
    then: Image,
    /// Addresses that were looked at.
    seen: RefCell<BTreeSet<u64>>,
}

impl Source for Fleeting {
    fn read(&self, spans: &[Span], buffer: &mut [u8]) -> Result<Copied, Fault> {
        let mut first = vec![0; buffer.len()];
        self.first.read(spans, &mut first)?;
        let copied = self.then.read(spans, buffer)?;
        let addresses = spans.iter().flat_map(|span| (span.start..).take(span.len));
        for ((address, byte), first) in addresses.zip(buffer).zip(first) {
            if self.seen.borrow_mut().insert(address) {
                *byte = first;
            }
        }
        Ok(copied)
    }

    fn mappings(&self) -> Result<Vec<Mapping>, Fault> {
        self.then.mappings()
    }
}

/// Where modules are loaded again and again, the same addresses come to hold the same structure after each garbage
/// collection, so a text can be another one although every class, dict and slot is as it was.
#[test]
fn a_text_that_was_another_one_for_a_moment_is_read_again() {
    const NOW: &[u8] = b"hubspot";
    for (minor, then) in recordings() {
        let mut bytes = then.encode();
        let at = bytes.windows(NOW.len()).position(|window| window == NOW).expect("the value");
        bytes[at..at + NOW.len()].copy_from_slice(b"another");
        let first = Image::decode(&bytes).expect("a recording");
        let values = |source: &dyn Source| {
            let reading = read(source);
            assert_eq!(reading.outcome, Outcome::Complete, "3.{minor}");
            let plain = reading.enums.into_iter().find(|class| class.name.qualname == "Plain").expect("a class");
            plain.definition.members.first().map(|member| member.value.repr())
        };
        assert_eq!(values(&first).as_deref(), Some("\"another\""), "3.{minor}: the text is looked at");
        let fleeting = Fleeting { first, then, seen: RefCell::default() };
        assert_eq!(values(&fleeting).as_deref(), Some("\"hubspot\""), "3.{minor}");
    }
}

#[test]
fn a_process_without_enums_is_never_complete() {
    let reading = read(&Image::default());
    assert!(matches!(reading.outcome, Outcome::Unsupported(_)), "{:?}", reading.outcome);
}

/// A recording whose interpreter gives itself out for another: `_Py_DebugOffsets` begins with its cookie, the version
/// and whether it is free-threaded (`Include/internal/pycore_debug_offsets.h`, 3.13).
fn given_out_for(hexversion: u32, free_threaded: u64) -> Image {
    const COOKIE: &[u8] = b"xdebugpy";
    let (_, image) = recordings().pop().expect("3.13");
    let mut bytes = image.encode();
    let at = bytes.windows(COOKIE.len()).position(|window| window == COOKIE).expect("a cookie") + COOKIE.len();
    bytes[at..at + 8].copy_from_slice(&u64::from(hexversion).to_le_bytes());
    bytes[at + 8..at + 16].copy_from_slice(&free_threaded.to_le_bytes());
    Image::decode(&bytes).expect("a recording")
}

#[test]
fn a_version_or_a_build_whose_layout_is_not_known_is_refused_by_name() {
    let check = |hexversion: u32, free_threaded: u64, because: &str| {
        let reading = read(&given_out_for(hexversion, free_threaded));
        let Outcome::Unsupported(why) = reading.outcome else { panic!("{because}: {:?}", reading.outcome) };
        assert!(why.starts_with(because), "{why}");
        assert!(reading.enums.is_empty());
    };
    check(0x030e_00f0, 0, "CPython 3.14: its memory layout is not known (known: 3.8 to 3.13)");
    check(0x0310_00a1, 0, "CPython 3.16: its memory layout is not known");
    check(0x030e_00f0, 1, "CPython 3.14, free-threaded: its memory layout is not known");
    check(0x030d_00f0, 1, "CPython 3.13 with an unknown memory layout");
    assert_eq!(read(&given_out_for(0x030d_00f0, 0)).outcome, Outcome::Complete);
}

/// Puts another path of the same length in the place of the one that the interpreter lies in.
fn without(mut bytes: Vec<u8>, prefix: &Path) -> Vec<u8> {
    let old = prefix.as_os_str().as_bytes().to_vec();
    let new: Vec<u8> = b"/opt/python/".iter().copied().chain(std::iter::repeat(b'_')).take(old.len()).collect();
    for at in 0..bytes.len() {
        if old.len() > 8 && bytes[at..].starts_with(&old) {
            bytes[at..at + old.len()].copy_from_slice(&new);
        }
    }
    bytes
}

#[test]
#[ignore = "writes tests/fixtures/memory"]
fn recordings_are_made_anew() {
    std::fs::create_dir_all(directory()).expect("tests/fixtures/memory");
    for (release, python) in interpreters() {
        let minor = release.split('.').nth(1).expect("a minor version");
        let arguments = ["-I", "-S", "-X", "utf8", "small.py"];
        let place = tempfile::tempdir().expect("a directory");
        std::fs::copy(fixtures().join("python/small.py"), place.path().join("small.py")).expect("a copy");
        let mut running = Running::start(&python, &arguments, place.path());
        running.line();
        let image = memory::record(identity(running.identity().pid.0), &ReadOptions::default()).expect("a recording");
        let bytes = without(image.encode(), python.ancestors().nth(2).expect("a prefix"));
        assert!(Image::decode(&bytes).is_ok(), "{release}");
        println!("{release}: {} bytes", bytes.len());
        std::fs::write(directory().join(format!("cpython-3.{minor}.image")), bytes).expect("written");
    }
}
