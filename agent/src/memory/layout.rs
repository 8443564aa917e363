//! Where CPython keeps things: one table per minor version and kind of build.
//!
//! All numbers are byte offsets on 64-bit Linux, from each version's own headers
//! (`Include/internal/pycore_runtime.h`, `pycore_interp.h`, `pycore_dict.h`, `Include/cpython/object.h`,
//! `unicodeobject.h`, `longintrepr.h`), proven by reading live processes. A minor version that is not
//! here is refused: layouts move with every one.

use unstale_protocol::ids::PythonVersion;

/// How a dict's table of keys begins: `struct _dictkeysobject`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeysForm {
    /// 3.8 to 3.10: `dk_size`, entries of 24 bytes.
    Sized,
    /// 3.11 and later: `dk_log2_size`, `dk_log2_index_bytes`, `dk_kind`.
    Logarithmic,
}

/// Where an instance keeps its attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InstanceForm {
    /// 3.8 to 3.10: a dict at `tp_dictoffset`.
    Offset,
    /// 3.11: values at -32, a dict at -24.
    TwoPointers,
    /// 3.12: one word at -24; an odd one points to values.
    TaggedPointer,
    /// 3.13: a dict before the object, else values behind it.
    Inline {
        /// How far before the object the dict's address lies.
        dict_before: u64,
    },
}

/// Where one kind of CPython keeps things.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) version: PythonVersion,
    pub(crate) free_threaded: bool,
    /// `_PyRuntime.interpreters.head`.
    pub(crate) runtime_interpreters: u64,
    /// `PyInterpreterState.next`.
    pub(crate) interpreter_next: u64,
    /// `PyInterpreterState.modules`, the dict `sys.modules`.
    pub(crate) interpreter_modules: u64,
    /// `PyInterpreterState.sysdict`.
    pub(crate) interpreter_sysdict: u64,
    /// `sizeof(PyObject)`.
    pub(crate) header: u64,
    /// `PyHeapTypeObject.ht_qualname`.
    pub(crate) qualname: u64,
    /// Where the array of values begins in `PyDictValues`.
    pub(crate) values_start: u64,
    /// `sizeof(PyASCIIObject)`: where the characters of ASCII text begin.
    pub(crate) ascii: u64,
    /// `sizeof(PyCompactUnicodeObject)`: where other characters, or the pointer to them, begin.
    pub(crate) compact: u64,
    pub(crate) keys: KeysForm,
    /// Whether an int has `lv_tag` (3.12 and later) instead of a signed `ob_size`.
    pub(crate) tagged_int: bool,
    pub(crate) instance: InstanceForm,
}

const fn layout(minor: u8) -> Layout {
    Layout {
        version: PythonVersion::three(minor),
        free_threaded: false,
        runtime_interpreters: 32,
        interpreter_next: 0,
        interpreter_modules: 856,
        interpreter_sysdict: 872,
        header: 16,
        qualname: 864,
        values_start: 0,
        ascii: 48,
        compact: 72,
        keys: KeysForm::Sized,
        tagged_int: false,
        instance: InstanceForm::Offset,
    }
}

static LAYOUTS: [Layout; 7] = [
    Layout { interpreter_modules: 56, interpreter_sysdict: 72, ..layout(8) },
    Layout { qualname: 856, ..layout(9) },
    layout(10),
    Layout {
        runtime_interpreters: 40,
        interpreter_modules: 888,
        interpreter_sysdict: 904,
        keys: KeysForm::Logarithmic,
        instance: InstanceForm::TwoPointers,
        ..layout(11)
    },
    Layout {
        runtime_interpreters: 40,
        interpreter_modules: 944,
        interpreter_sysdict: 352,
        qualname: 872,
        ascii: 40,
        compact: 56,
        keys: KeysForm::Logarithmic,
        tagged_int: true,
        instance: InstanceForm::TaggedPointer,
        ..layout(12)
    },
    Layout {
        runtime_interpreters: 632,
        interpreter_next: 7264,
        interpreter_modules: 7656,
        interpreter_sysdict: 7640,
        qualname: 872,
        values_start: 8,
        ascii: 40,
        compact: 56,
        keys: KeysForm::Logarithmic,
        tagged_int: true,
        instance: InstanceForm::Inline { dict_before: 24 },
        ..layout(13)
    },
    Layout {
        free_threaded: true,
        runtime_interpreters: 632,
        interpreter_next: 7264,
        interpreter_modules: 7664,
        interpreter_sysdict: 7648,
        header: 32,
        qualname: 888,
        values_start: 8,
        ascii: 56,
        compact: 72,
        keys: KeysForm::Logarithmic,
        tagged_int: true,
        instance: InstanceForm::Inline { dict_before: 8 },
        ..layout(13)
    },
];

/// `Py_TPFLAGS_INLINE_VALUES`, 3.13.
const INLINE_VALUES: u64 = 1 << 2;
/// `Py_TPFLAGS_MANAGED_DICT`, 3.11 and later.
const MANAGED_DICT: u64 = 1 << 4;

impl Layout {
    /// Returns the layout of a version, where it is known.
    pub(crate) fn of(version: PythonVersion, free_threaded: bool) -> Option<&'static Self> {
        LAYOUTS.iter().find(|layout| layout.version == version && layout.free_threaded == free_threaded)
    }

    /// Returns some layout, to begin with.
    pub(crate) fn any() -> &'static Self {
        let [first, ..] = &LAYOUTS;
        first
    }

    /// Layouts of versions that name themselves nowhere outside Python objects: 3.8 to 3.10.
    pub(crate) fn unnamed() -> impl Iterator<Item = &'static Self> {
        LAYOUTS.iter().rev().filter(|layout| layout.version.minor <= 10)
    }

    /// Offset of `ob_type`.
    pub(crate) fn ob_type(&self) -> u64 {
        self.header - 8
    }

    /// Bytes of a heap type that matter: to the end of `ht_cached_keys`.
    pub(crate) fn heap_type_end(&self) -> u64 {
        self.qualname + 16
    }

    /// Tells whether instances keep attributes where [`InstanceForm`] says, not at `tp_dictoffset`.
    pub(crate) fn is_managed(&self, flags: u64) -> bool {
        self.instance != InstanceForm::Offset && flags & MANAGED_DICT != 0
    }

    /// Tells whether values lie behind the object.
    pub(crate) fn has_inline_values(flags: u64) -> bool {
        flags & INLINE_VALUES != 0
    }

    /// Which bytes of a table's head change with its keys: not the reference count, and not `dk_version`, which
    /// the interpreter sets when it specialises code.
    pub(crate) fn keys_head(&self) -> &'static [(u64, usize)] {
        match self.keys {
            KeysForm::Sized => &[(8, 32)],
            KeysForm::Logarithmic => &[(8, 4), (16, 16)],
        }
    }
}
