use waybill_testkit::{TestDb, TestPostgres, psql};

#[tokio::test]
async fn each_test_has_a_migrated_database_of_its_own() {
    let (one, two) = tokio::join!(TestDb::create(), TestDb::create());
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_ne!(one.name, two.name);

    let insert = "INSERT INTO project (id, name) VALUES (gen_random_uuid(), 'only-here')";
    psql(&one.url, insert).await.unwrap();
    assert_eq!(psql(&one.url, "SELECT count(*) FROM project").await.unwrap(), "1");
    assert_eq!(psql(&two.url, "SELECT count(*) FROM project").await.unwrap(), "0");

    let recorded = "SELECT count(*) > 0 AND bool_and(success AND octet_length(checksum) = 48)
                    FROM _sqlx_migrations";
    assert_eq!(psql(&one.url, recorded).await.unwrap(), "t");
}

#[tokio::test]
async fn an_empty_database_has_nothing_in_it() {
    let db = TestDb::empty().await.unwrap();
    let tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";
    assert_eq!(psql(&db.url, tables).await.unwrap(), "0");
}

#[tokio::test]
async fn a_dropped_database_is_gone_whoever_is_connected() {
    let server = TestPostgres::volatile().await.unwrap();
    let db = server.database().await.unwrap();
    let busy = tokio::spawn({
        let url = db.url.clone();
        async move { psql(&url, "SELECT pg_sleep(600)").await }
    });
    let connected = format!("SELECT count(*) FROM pg_stat_activity WHERE datname = '{}'", db.name);
    waybill_testkit::eventually("a session is open", crate::DEADLINE, async || {
        psql(&server.admin_url(), &connected).await.is_ok_and(|count| count == "1")
    })
    .await;
    let found = format!("SELECT count(*) FROM pg_database WHERE datname = '{}'", db.name);
    drop(db);
    assert_eq!(psql(&server.admin_url(), &found).await.unwrap(), "0");
    assert!(busy.await.unwrap().is_err());
}

#[tokio::test]
async fn sql_that_fails_says_why() {
    let db = TestDb::empty().await.unwrap();
    let error = psql(&db.url, "SELECT * FROM nowhere").await.unwrap_err().to_string();
    assert!(error.contains("nowhere"), "{error}");
    let two = psql(&db.url, "CREATE TABLE t (v int); SELECT * FROM nowhere").await;
    assert!(two.is_err());
    assert!(psql(&db.url, "SELECT * FROM t").await.is_err(), "several statements are one");
}
