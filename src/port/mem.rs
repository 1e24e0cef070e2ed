//! Two queues in memory.

/// The switch's half of a port in memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemPort {}
