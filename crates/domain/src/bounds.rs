//! Bounds of histograms, so that what is measured in several crates can be laid side by side.

/// Of calls, in seconds: from a lookup to what everybody has given up on.
pub const CALL_SECONDS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Of what may take a while, in seconds: from what an idle system takes to hours behind an outage.
pub const LONG_SECONDS: [f64; 14] =
    [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3_600.0, 14_400.0];

/// Of the wait for a connection, in seconds: one that is free is there in microseconds, and 10 s is
/// the longest that is waited by default.
pub const WAIT_SECONDS: [f64; 10] = [0.000_1, 0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 5.0, 10.0];

/// Of how many things were done at once.
pub const COUNTS: [f64; 12] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1_024.0, 4_096.0];
