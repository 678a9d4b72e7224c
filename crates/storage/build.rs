//! Rebuilds the crate when a migration is added: `sqlx::migrate!` alone doesn't notice.
fn main() {
    println!("cargo:rerun-if-changed=../../migrations");
}
