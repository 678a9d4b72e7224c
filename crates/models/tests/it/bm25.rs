use waybill_models::{Bm25, SparseVector};

const TEXT: &str = "The planner plans the plan. Indexes on naïve columns, İstanbul!";

/// Compares indices exactly and values up to rounding.
fn assert_vector(vector: &SparseVector, expected: &[(u32, f32)]) {
    let indices: Vec<u32> = expected.iter().map(|(index, _)| *index).collect();
    assert_eq!(vector.indices, indices);
    for (value, (_, expected)) in vector.values.iter().zip(expected) {
        assert!((value - expected).abs() < 1e-5, "{value} is not {expected}");
    }
}

#[test]
fn documents_weigh_terms_as_they_always_did() {
    // Worked out by hand, and stored in Qdrant by other processes: a change here means that
    // every collection is to be rebuilt.
    let expected = [
        (151_693_739, 1.6305732),   // index
        (1_059_843_399, 1.6305732), // istanbul
        (1_390_391_395, 1.6305732), // planner
        (2_888_786_263, 1.6305732), // naiv
        (3_083_585_298, 1.8729631), // plan
        (4_126_724_647, 1.6305732), // column
    ];
    assert_vector(&Bm25::new().document(TEXT), &expected);
}

#[test]
fn queries_weigh_each_term_once() {
    let expected = [
        (287_969_490, 1.0),   // vacuum
        (3_978_140_768, 1.0), // tabl
    ];
    assert_vector(&Bm25::new().query("vacuum vacuum vacuums the tables"), &expected);
}

#[test]
fn indices_are_unique_and_ascending() {
    let words: Vec<String> = (0..500).map(|number| format!("word{} ", number % 97)).collect();
    let bm25 = Bm25::new();
    for vector in [bm25.document(&words.concat()), bm25.query(&words.concat())] {
        assert_eq!(vector.indices.len(), 97);
        assert_eq!(vector.values.len(), 97);
        assert!(vector.indices.is_sorted_by(|a, b| a < b));
    }
}

#[test]
fn inflections_meet_and_stop_words_vanish() {
    let bm25 = Bm25::new();
    assert_eq!(bm25.query("indexing the tables").indices, bm25.query("indexed table").indices);
    assert!(bm25.query("the of and to").is_empty());
    assert!(bm25.document("... !?").is_empty());
    assert!(bm25.document("").is_empty());
}

#[test]
fn a_term_weighs_more_often_and_in_a_shorter_document() {
    let bm25 = Bm25::new();
    let filler = "filler ".repeat(300);
    let weight = |text: &str| {
        let term = bm25.query("vacuum").indices[0];
        let document = bm25.document(text);
        document.values[document.indices.binary_search(&term).unwrap()]
    };
    assert!(weight("vacuum vacuum table") > weight("vacuum row table"));
    assert!(weight("vacuum table") > weight(&format!("vacuum table {filler}")));
}

#[test]
fn line_breaks_part_words_behind_any_letter() {
    let bm25 = Bm25::new();
    for text in [
        "Caf\u{e9}\ncrane\nledger",
        "\u{6771}\u{4eac}: crane.\n\nLedger",
        "\u{dc}ber\tcrane\tledger",
        "crane\r\nledger",
    ] {
        let document = bm25.document(text);
        for word in ["crane", "ledger"] {
            let query = bm25.query(word);
            assert!(document.indices.contains(&query.indices[0]), "{word} in {text:?}");
        }
    }
}
