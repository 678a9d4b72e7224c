//! How much of an answer is read and kept. What goes beyond is dropped and counted.

/// The longest answer that is read from a server, its envelope included.
pub const MAX_ANSWER_BYTES: usize = 1 << 20;

/// The most facts kept of one chunk, whatever is configured.
pub const MAX_FACTS: usize = 64;

/// The longest statement of a fact.
pub const MAX_STATEMENT_BYTES: usize = 2 << 10;

/// The longest name of an entity, as written and in its canonical form. Holds for a
/// fact's subject, predicate and object too.
pub const MAX_ENTITY_NAME_BYTES: usize = 256;

/// The most entities kept of one fact, whatever is configured.
pub const MAX_ENTITIES_PER_FACT: usize = 16;
