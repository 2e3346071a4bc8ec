//! Syncs left out on order, to show that tests with power cuts notice: only with the feature
//! `fault-injection`.

use std::sync::LazyLock;

/// Says which, with white space between several: [`SEGMENTS`], [`SPILLS`].
const VARIABLE: &str = "GATEPOST_FAULT_NO_SYNC";
/// Segments are written without waiting for the disk.
pub(super) const SEGMENTS: &str = "segments";
/// Spill files are.
pub(super) const SPILLS: &str = "spills";

/// Whether these syncs are left out.
pub(super) fn leaves_out(syncs: &str) -> bool {
    static ORDER: LazyLock<String> = LazyLock::new(|| std::env::var(VARIABLE).unwrap_or_default());
    ORDER.split_whitespace().any(|word| word == syncs)
}
