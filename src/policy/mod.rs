//! Decisions: facts in, verdict out.
//!
//! What lives here: who counts as one source (`source`), how many connections and messages a
//! source has had (`table`), whose next banner is to be late (`marks`), which domains are ours and
//! what is kept by domain (`domains`), which addresses a list names (`ranges`) and for how long
//! (`blocks`), how the DNS is asked for a list and what it answers (`dnsbl`), who is let in
//! (`admission`), and the verdicts made of these (`verdict`). The
//! protocol asks; the shard brings the facts and carries the answer back.
//!
//! What it may use: `smtp` and `limits`. No socket, no file, no clock and no configuration: the
//! time is an argument in milliseconds, lists arrive as text or as parsed items. `table`, `marks`
//! and `atomic` use nothing of this crate but `limits`, because the loom models in
//! `tests/loom_tables.rs` compile `table.rs` and `marks.rs` a second time, over loom's atomics.
//!
//! On failure: parsing an operator's item returns an error that names the item, and nothing is
//! built from a list with a bad item in it. A decision cannot fail, and costs the same few memory
//! accesses whatever a peer sends; where nothing permits an action, it is refused. The tables
//! panic only while they are made, when there is no memory for them.

mod admission;
pub(crate) mod atomic;
mod blocks;
mod dnsbl;
mod domains;
mod list_file;
mod marks;
mod ranges;
mod source;
mod table;
mod verdict;

#[cfg(test)]
mod marks_tests;
#[cfg(test)]
mod table_tests;

pub use admission::{BindingRules, Door, Sources};
pub use blocks::{BlocksFull, DynamicBlocks};
pub use dnsbl::{BlockListZone, Listing, ZoneError, judge_answer};
pub use domains::{AcceptedDomains, DomainError, DomainFault, DomainMap, DomainPattern};
pub use list_file::{LineError, parse_list_file};
pub use marks::{Fingerprint, TarpitMarks};
pub use ranges::{AddressRanges, RangeError, parse_range};
pub use source::{Source, SourceHasher, canonical};
pub use table::{ConnectionCounter, ConnectionTable, RATE_WINDOW_MS, RateTable, Slot, SlotCount, SlotCountError};
pub use verdict::{RecipientVerdict, minds_block_lists, recipient};
