//! What every rendering of the chart has to keep. Each rule returns what breaks it, in words.

mod links;
mod pods;

pub use links::*;
pub use pods::*;

use crate::chart::Manifest;

/// A rule.
pub type Policy = fn(&[Manifest]) -> Vec<String>;
