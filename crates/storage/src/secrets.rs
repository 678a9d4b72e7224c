//! Secrets that belong to the database.

use crate::{Db, Result};

/// Returns what page tokens are signed with: 32 random bytes, made with the schema.
///
/// # Errors
/// If Postgres is away or the statement fails.
pub async fn page_token_key(db: &Db) -> Result<Vec<u8>> {
    Ok(sqlx::query_scalar!("SELECT key FROM page_token_key").fetch_one(db.pool()).await?)
}
