//! From what the eyes found to verdicts: one process against what is wanted of it. Pure.
//!
//! What is wanted is the manifest's after a broadcast, or what this host's own next-start source says. The
//! table of verdicts itself is [`unstale_protocol::verdict`]; this room says which line of it fits.

mod binding;
mod enums;
mod fit;
mod manifest;
mod own;
mod view;

pub use enums::{BindingJudged, EnumJudged, LayerView, WorkerJudged};
pub use fit::{Fit, Placed, fit};
pub use manifest::against_manifest;
pub use own::against_source;
pub(crate) use own::obstacle;
pub(crate) use view::difference;
pub use view::{BytecodeState, CodeView, ModuleView};
