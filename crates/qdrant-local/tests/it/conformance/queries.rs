use qdrant_client::qdrant::{
    Condition, Filter, Fusion, PointId, PrefetchQueryBuilder, Query, QueryBatchPointsBuilder, QueryPointsBuilder,
    RrfBuilder, ScoredPoint, VectorInput, VectorsSelector,
};
use serde_json::json;
use tonic::Code;

use crate::support::{DENSE, Fixture, SPARSE, assert_status, number, point};

/// Points 1 to 4: the dense vectors rank them 1, 2, 3, 4 for [`EAST`]; term 7
/// stands in 3 and 4, term 8 in all.
async fn corpus(fixture: &Fixture) -> String {
    let name = fixture.collection().await;
    let points = vec![
        point(1, [0.9, 0.0, 0.0, 0.0], &[(8, 1.0)], json!({"project": "a", "n": 1})),
        point(2, [0.7, 0.1, 0.0, 0.0], &[(8, 1.0)], json!({"project": "a", "n": 2})),
        point(3, [0.5, 0.2, 0.0, 0.0], &[(7, 1.0), (8, 1.0)], json!({"project": "b"})),
        point(4, [0.3, 0.3, 0.0, 0.0], &[(7, 2.0), (8, 1.0)], json!({"project": "b"})),
    ];
    fixture.upsert(&name, points).await;
    name
}

const EAST: [f32; 4] = [1.0, 0.0, 0.0, 0.0];

fn dense() -> Query {
    Query::new_nearest(EAST.to_vec())
}

fn sparse(terms: &[(u32, f32)]) -> Query {
    Query::new_nearest(VectorInput::from(terms))
}

fn ids(points: &[ScoredPoint]) -> Vec<u64> {
    points.iter().map(|hit| number(hit.id.clone())).collect()
}

async fn run(fixture: &Fixture, request: QueryPointsBuilder) -> Vec<ScoredPoint> {
    fixture.client.query(request).await.unwrap().result
}

#[tokio::test]
async fn nearest_dense_ranks_filters_pages_and_cuts_off() {
    let fixture = Fixture::new().await;
    let name = corpus(&fixture).await;
    let query = || QueryPointsBuilder::new(&name).query(dense()).using(DENSE);

    let hits = run(&fixture, query().limit(3)).await;
    assert_eq!(ids(&hits), [1, 2, 3]);
    assert!((hits[0].score - 0.9).abs() < 1e-6);
    assert!(hits[0].payload.is_empty() && hits[0].vectors.is_none());

    let hits = run(&fixture, query().limit(2).offset(1)).await;
    assert_eq!(ids(&hits), [2, 3]);

    let only_b = Filter::must([Condition::matches("project", "b".to_owned())]);
    let hits = run(&fixture, query().filter(only_b).with_payload(true).with_vectors(true)).await;
    assert_eq!(ids(&hits), [3, 4]);
    assert_eq!(hits[0].payload["project"].as_str().unwrap(), "b");
    let vectors = hits[0].vectors.clone().unwrap();
    assert!(vectors.get_vector_by_name(DENSE).is_some());
    assert!(vectors.get_vector_by_name(SPARSE).is_some());

    let hits = run(&fixture, query().score_threshold(0.6)).await;
    assert_eq!(ids(&hits), [1, 2]);
}

#[tokio::test]
async fn payload_and_vectors_are_selected_by_name() {
    let fixture = Fixture::new().await;
    let name = corpus(&fixture).await;
    let request = QueryPointsBuilder::new(&name)
        .query(dense())
        .using(DENSE)
        .limit(1)
        .with_payload(qdrant_client::qdrant::PayloadIncludeSelector::new(vec!["n".to_owned()]))
        .with_vectors(VectorsSelector { names: vec![SPARSE.to_owned()] });
    let hits = run(&fixture, request).await;
    assert_eq!(hits[0].payload.keys().collect::<Vec<_>>(), ["n"]);
    let vectors = hits[0].vectors.clone().unwrap();
    assert!(vectors.get_vector_by_name(DENSE).is_none());
    assert!(vectors.get_vector_by_name(SPARSE).is_some());
}

#[tokio::test]
async fn nearest_sparse_weighs_rare_terms_more() {
    let fixture = Fixture::new().await;
    let name = corpus(&fixture).await;
    let query = |terms: &[(u32, f32)]| QueryPointsBuilder::new(&name).query(sparse(terms)).using(SPARSE);
    let hits = run(&fixture, query(&[(7, 1.0)])).await;
    assert_eq!(ids(&hits), [4, 3], "points without the term are no hits");

    // ln((N - n + 0.5) / (n + 0.5) + 1): term 7 stands in 2 of 4 points, 8 in all.
    let (rare, common) = (2.0_f32.ln(), (0.5_f32 / 4.5 + 1.0).ln());
    let hits = run(&fixture, query(&[(7, 1.0), (8, 1.0)])).await;
    assert_eq!(number(hits[0].id.clone()), 4);
    assert!((hits[0].score - (2.0 * rare + common)).abs() < 1e-4);
}

#[tokio::test]
async fn fusion_merges_dense_and_sparse_by_rank() {
    let fixture = Fixture::new().await;
    let name = corpus(&fixture).await;
    let prefetches = |limit: u64| {
        let dense = PrefetchQueryBuilder::default().query(dense()).using(DENSE);
        let sparse = PrefetchQueryBuilder::default().query(sparse(&[(7, 1.0)])).using(SPARSE);
        [dense.limit(limit), sparse.limit(limit)]
    };
    let fused = |query: Query| {
        let [dense, sparse] = prefetches(10);
        QueryPointsBuilder::new(&name).add_prefetch(dense).add_prefetch(sparse).query(query)
    };
    // Ranks from 0: dense 1, 2, 3, 4; sparse 4, 3. Scores 1/(2+rank), summed:
    // 4: 1/5 + 1/2, 3: 1/4 + 1/3, 1: 1/2, 2: 1/3.
    let hits = run(&fixture, fused(Query::new_fusion(Fusion::Rrf))).await;
    assert_eq!(ids(&hits), [4, 3, 1, 2]);
    assert!((hits[0].score - 0.7).abs() < 1e-6);

    // With 1 in place of 2: 4: 1/4 + 1, 1: 1, 3: 1/3 + 1/2.
    let steeper = Query::new_rrf(RrfBuilder::with_k(1));
    let hits = run(&fixture, fused(steeper).limit(3)).await;
    assert_eq!(ids(&hits), [4, 1, 3]);

    let only_a = Filter::must([Condition::matches("project", "a".to_owned())]);
    let request = fused(Query::new_fusion(Fusion::Rrf)).filter(only_a).with_payload(true);
    let hits = run(&fixture, request).await;
    assert_eq!(ids(&hits), [1, 2]);
    assert_eq!(hits[0].payload["project"].as_str().unwrap(), "a");

    let request = fused(Query::new_fusion(Fusion::Rrf)).offset(1).limit(2);
    assert_eq!(ids(&run(&fixture, request).await), [3, 1]);
}

#[tokio::test]
async fn a_batch_answers_every_query() {
    let fixture = Fixture::new().await;
    let name = corpus(&fixture).await;
    let queries = vec![
        QueryPointsBuilder::new(&name).query(dense()).using(DENSE).limit(1).build(),
        QueryPointsBuilder::new(&name).query(sparse(&[(7, 1.0)])).using(SPARSE).limit(1).build(),
    ];
    let request = QueryBatchPointsBuilder::new(&name, queries);
    let answer = fixture.client.query_batch(request).await.unwrap().result;
    assert_eq!(answer.len(), 2);
    assert_eq!(ids(&answer[0].result), [1]);
    assert_eq!(ids(&answer[1].result), [4]);
}

#[tokio::test]
async fn wrong_queries_are_refused() {
    let fixture = Fixture::new().await;
    let name = corpus(&fixture).await;
    let short = QueryPointsBuilder::new(&name).query(Query::new_nearest(vec![1.0, 2.0])).using(DENSE);
    assert_status(fixture.client.query(short).await, Code::InvalidArgument, "expected dim: 4, got 2");
    let unknown = QueryPointsBuilder::new(&name).query(dense()).using("other");
    assert_status(fixture.client.query(unknown).await, Code::InvalidArgument, "Not existing vector name error: other");
    let alone = QueryPointsBuilder::new(&name).query(Query::new_fusion(Fusion::Rrf));
    assert_status(fixture.client.query(alone).await, Code::InvalidArgument, "prefetch");
    let id = PointId::from(1);
    let found = fixture.get(&name, id).await;
    assert!(found.is_some(), "the corpus is still there");
}
