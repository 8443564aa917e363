//! The header of a `.pyc`, whether the interpreter would use the file, and where it lies: PEP 552, 3147, 488.

use serde::{Deserialize, Serialize};
use siphasher::sip::{SipHasher13, SipHasher24};
use std::hash::Hasher as _;
use unstale_protocol::ids::PythonVersion;

/// Bytes before the code object, Python 3.7 and later.
pub const HEADER_BYTES: usize = 16;

/// What a `.pyc` says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The magic number, without the carriage return and line feed that follow it.
    pub magic: u16,
    /// What the file is held against.
    pub validity: Validity,
}

/// What a `.pyc` is held against when it is imported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Validity {
    /// Flags 0: time and size of the source, both modulo 2^32.
    Timestamp {
        /// Seconds since the epoch, as the interpreter rounds them.
        mtime: u32,
        /// Bytes.
        size: u32,
    },
    /// Flags 3: a hash of the source.
    CheckedHash([u8; 8]),
    /// Flags 1: nothing; the hash is there all the same.
    UncheckedHash([u8; 8]),
}

/// Why a file is ignored at import, whatever it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum HeaderError {
    /// Shorter than a header.
    #[error("shorter than a header of {HEADER_BYTES} bytes")]
    Short,
    /// Made for another interpreter.
    #[error("magic number {found} is not that of Python {python}")]
    Magic {
        /// The number found.
        found: u16,
        /// The version that was asked for.
        python: PythonVersion,
    },
    /// Flags that no version writes.
    #[error("flags {0:#x} are not known")]
    Flags(u32),
    /// A version whose format is not known here.
    #[error("bytecode of Python {0} is not supported")]
    Unsupported(PythonVersion),
}

/// What is known of the source that a `.pyc` stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStat {
    /// Its size in bytes.
    pub size: u64,
    /// Whole seconds of its modification time.
    pub mtime_s: i64,
    /// Nanoseconds of its modification time.
    pub mtime_ns: u32,
}

/// Whether the interpreter would run a `.pyc` instead of its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Acceptance {
    /// It would.
    Used,
    /// It would, although its hash is not that of the source: the file is stale for certain.
    UsedThoughHashDiffers,
    /// It would compile the source anew.
    Ignored,
}

/// Returns the magic number of the releases of a Python version (`Lib/importlib/_bootstrap_external.py`).
pub fn magic(python: PythonVersion) -> Option<u16> {
    match (python.major, python.minor) {
        (3, 8) => Some(3413),
        (3, 9) => Some(3425),
        (3, 10) => Some(3439),
        (3, 11) => Some(3495),
        (3, 12) => Some(3531),
        (3, 13) => Some(3571),
        _ => None,
    }
}

/// Reads the header of a `.pyc` that `python` would be given.
///
/// # Errors
///
/// What makes that interpreter ignore the file, and versions that are not known here.
pub fn read(pyc: &[u8], python: PythonVersion) -> Result<Header, HeaderError> {
    let wanted = magic(python).ok_or(HeaderError::Unsupported(python))?;
    let header: &[u8; HEADER_BYTES] = pyc.first_chunk().ok_or(HeaderError::Short)?;
    let [m0, m1, cr, lf, f0, f1, f2, f3, a0, a1, a2, a3, b0, b1, b2, b3] = *header;
    let found = u16::from_le_bytes([m0, m1]);
    if found != wanted || [cr, lf] != *b"\r\n" {
        return Err(HeaderError::Magic { found, python });
    }
    let hash = [a0, a1, a2, a3, b0, b1, b2, b3];
    let validity = match u32::from_le_bytes([f0, f1, f2, f3]) {
        0 => Validity::Timestamp {
            mtime: u32::from_le_bytes([a0, a1, a2, a3]),
            size: u32::from_le_bytes([b0, b1, b2, b3]),
        },
        1 => Validity::UncheckedHash(hash),
        3 => Validity::CheckedHash(hash),
        flags => return Err(HeaderError::Flags(flags)),
    };
    Ok(Header { magic: found, validity })
}

impl Header {
    /// Tells whether the interpreter would run this file for a source of that time, size and content.
    /// The option `--check-hash-based-pycs` is taken to have its default.
    pub fn accepts(&self, stat: &SourceStat, source: &[u8]) -> Acceptance {
        match self.validity {
            Validity::Timestamp { mtime, size } => {
                if mtime == rounded_mtime(stat) && u64::from(size) == stat.size & 0xffff_ffff {
                    Acceptance::Used
                } else {
                    Acceptance::Ignored
                }
            }
            Validity::CheckedHash(hash) => {
                if hash == source_hash(self.magic, source) {
                    Acceptance::Used
                } else {
                    Acceptance::Ignored
                }
            }
            Validity::UncheckedHash(hash) => {
                if hash == source_hash(self.magic, source) {
                    Acceptance::Used
                } else {
                    Acceptance::UsedThoughHashDiffers
                }
            }
        }
    }
}

/// Returns the modification time as the interpreter stores it: `int(st_mtime) & 0xFFFFFFFF`, where
/// `st_mtime` is a float, so that 999,999,999 ns can round up to the next second.
pub fn rounded_mtime(stat: &SourceStat) -> u32 {
    #[expect(clippy::cast_precision_loss, reason = "the interpreter computes with the same loss")]
    let time = stat.mtime_s as f64 + 1e-9 * f64::from(stat.mtime_ns);
    #[expect(clippy::cast_possible_truncation, reason = "int() truncates; the sum of an i64 and a second fits")]
    let whole = time as i64;
    // Masked to 32 bits, it fits.
    u32::try_from(whole & 0xffff_ffff).unwrap_or(0)
}

/// Returns the hash of a source as `_imp.source_hash` computes it: SipHash-2-4 up to 3.10, SipHash-1-3
/// from 3.11 on; the key is the four bytes of the magic number.
pub fn source_hash(magic: u16, source: &[u8]) -> [u8; 8] {
    let key = u64::from(magic) | 0x0a0d << 16;
    let hash = if magic >= 3450 {
        let mut hasher = SipHasher13::new_with_keys(key, 0);
        hasher.write(source);
        hasher.finish()
    } else {
        let mut hasher = SipHasher24::new_with_keys(key, 0);
        hasher.write(source);
        hasher.finish()
    };
    hash.to_le_bytes()
}

/// Returns the path of the `.pyc` that the interpreter keeps for an absolute source path, `optimize`
/// being `sys.flags.optimize` and `prefix` being `sys.pycache_prefix`.
pub fn cache_path(source: &str, python: PythonVersion, optimize: u8, prefix: Option<&str>) -> String {
    let (directory, file) = source.rsplit_once('/').unwrap_or(("", source));
    // As `cache_from_source`: the last extension goes, whatever it is.
    let stem = match file.rsplit_once('.') {
        Some((stem, _)) if !stem.is_empty() => stem,
        _ => file,
    };
    let optimization = if optimize == 0 { String::new() } else { format!(".opt-{optimize}") };
    let name = format!("{stem}.cpython-{}{}{optimization}.pyc", python.major, python.minor);
    match prefix {
        Some(prefix) => format!("{}/{}/{name}", prefix.trim_end_matches('/'), directory.trim_start_matches('/')),
        None => format!("{directory}/__pycache__/{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PYTHON: PythonVersion = PythonVersion::three(11);

    fn pyc(flags: u32, rest: [u8; 8]) -> Vec<u8> {
        [&3495_u16.to_le_bytes()[..], b"\r\n", &flags.to_le_bytes(), &rest].concat()
    }

    #[test]
    fn times_are_rounded_as_the_interpreter_rounds_them() {
        let check = |mtime_s, mtime_ns, want| {
            assert_eq!(rounded_mtime(&SourceStat { size: 0, mtime_s, mtime_ns }), want, "{mtime_s}.{mtime_ns}");
        };
        check(1_700_000_000, 0, 1_700_000_000);
        check(1_700_000_000, 500_000_000, 1_700_000_000);
        check(1_700_000_000, 999_999_999, 1_700_000_001);
        check(1_700_000_000 + (1 << 32), 0, 1_700_000_000);
        check(-2, 500_000_000, u32::MAX);
        check(-1, 500_000_000, 0);
        check(i64::MAX, 0, u32::MAX);
    }

    #[test]
    fn a_file_is_accepted_by_the_rules_of_its_flags() {
        let stat = SourceStat { size: 5, mtime_s: 7, mtime_ns: 0 };
        let hash = source_hash(3495, b"x = 1");
        let check = |flags, rest, want| {
            assert_eq!(read(&pyc(flags, rest), PYTHON).unwrap().accepts(&stat, b"x = 1"), want, "{flags}");
        };
        check(0, [7, 0, 0, 0, 5, 0, 0, 0], Acceptance::Used);
        check(0, [8, 0, 0, 0, 5, 0, 0, 0], Acceptance::Ignored);
        check(0, [7, 0, 0, 0, 6, 0, 0, 0], Acceptance::Ignored);
        check(3, hash, Acceptance::Used);
        check(3, [0; 8], Acceptance::Ignored);
        check(1, hash, Acceptance::Used);
        check(1, [0; 8], Acceptance::UsedThoughHashDiffers);
    }

    #[test]
    fn what_the_interpreter_ignores_is_refused() {
        assert_eq!(read(b"", PYTHON), Err(HeaderError::Short));
        assert_eq!(read(&pyc(2, [0; 8]), PYTHON), Err(HeaderError::Flags(2)));
        let python = PythonVersion::three(12);
        assert_eq!(read(&pyc(0, [0; 8]), python), Err(HeaderError::Magic { found: 3495, python }));
        let unknown = PythonVersion::three(99);
        assert_eq!(read(&pyc(0, [0; 8]), unknown), Err(HeaderError::Unsupported(unknown)));
    }

    #[test]
    fn caches_lie_where_the_interpreter_looks() {
        let check = |source, optimize, prefix, want: &str| {
            assert_eq!(cache_path(source, PYTHON, optimize, prefix), want);
        };
        check("/app/a.py", 0, None, "/app/__pycache__/a.cpython-311.pyc");
        check("/app/a.py", 2, None, "/app/__pycache__/a.cpython-311.opt-2.pyc");
        check("/app/a.py", 0, Some("/cache"), "/cache/app/a.cpython-311.pyc");
        check("/a.b.py", 0, None, "/__pycache__/a.b.cpython-311.pyc");
    }
}
