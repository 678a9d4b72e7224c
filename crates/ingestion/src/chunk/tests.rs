use proptest::prelude::*;
use waybill_domain::MediaType::{Html, Markdown, Text};

use super::*;

fn chunker() -> Chunker {
    Chunker::new(200, 20, None).unwrap()
}

fn cut(body: &str, media_type: MediaType, title: Option<&str>, uri: &str) -> Cut {
    chunker().cut(body, media_type, title, uri).unwrap()
}

fn small() -> Chunker {
    Chunker::new(12, 3, None).unwrap()
}

/// Each chunk as "path: text".
fn shown(cut: &Cut) -> Vec<String> {
    cut.chunks
        .iter()
        .map(|chunk| format!("{}: {}", chunk.headings.join(" > "), &cut.text[chunk.range.clone()]))
        .collect()
}

fn check(chunker: &Chunker, cut: &Cut) {
    let mut covered = 0;
    for chunk in &cut.chunks {
        let text = cut.text.get(chunk.range.clone()).expect("a range of the text");
        assert!(!text.trim().is_empty() && text.trim() == text, "{text:?}");
        assert_eq!(chunk.text_hash, TextHash::of(embedding_text(&chunk.headings, text)));
        assert!(chunk.token_count as usize <= chunker.max_tokens, "{} tokens", chunk.token_count);
        assert!(chunk.headings.iter().all(|heading| !heading.contains('\n')));
        assert!(chunk.range.end > covered, "no chunk lies within the one before");
        let gap = cut.text.get(covered..chunk.range.start).unwrap_or_default();
        covered = chunk.range.end;
        // What lies between two chunks is white space, or headings that the path repeats.
        for line in gap.lines() {
            let line = line.trim_matches(|c: char| c.is_whitespace() || "#=-".contains(c));
            let label = line.chars().take(8).collect::<String>();
            assert!(
                line.is_empty() || chunk.headings.iter().any(|heading| heading.contains(&label)) || gap.len() < 1_100,
                "{gap:?}"
            );
        }
    }
}

#[test]
fn a_markdown_document_is_cut_at_its_headings() {
    let body =
        "Intro.\n\n# Guide\n\nFirst.\n\n## Setup\n\nInstall it.\n\n```\n# no heading\n```\n\n## Empty\n\n# End\n";
    let cut = cut(body, Markdown, None, "docs/guide.md");
    assert_eq!(cut.title, "Guide");
    assert_eq!(cut.text, body);
    assert_eq!(
        shown(&cut),
        [
            "Guide: Intro.",
            "Guide: First.",
            "Guide > Setup: Install it.\n\n```\n# no heading\n```",
            "Guide: ## Empty",
            "Guide: # End"
        ]
    );
}

#[test]
fn front_matter_is_no_heading() {
    let cut = cut("---\ntitle: x\n---\n\nText.\n", Markdown, None, "a.md");
    assert_eq!(cut.title, "a.md");
    assert!(shown(&cut).last().unwrap().ends_with("Text."));
}

#[test]
fn a_page_is_reduced_to_what_is_read() {
    let body = r##"<!DOCTYPE html><html><head><title>Max &amp;
        Min</title><style>p { color: red }</style><script>if (a < b) { "<p>" }</script></head>
      <body><header><nav><ul><li><a href="/">Home</a></li></ul></nav></header>
      <div class="navheader"><table><tr><td>Prev</td></tr></table></div>
      <main><h1>Max &amp; Min<a class="headerlink" href="#x">¶</a></h1>
      <p>The <code>max_connections</code> para&shy;meter,
         see <b>bo</b>ld.</p>
      <pre>SELECT *
  FROM t;</pre>
      <dl><dt>work_mem</dt><dd><p>Memory.</p></dd><dt>port<dd>Number.</dl>
      <table><thead><tr><th>Name<th>Type</thead><tbody><tr><td>a</td><td><p>int</p></td></tr></tbody></table>
      <ol><li>One<ul><li>Nested</ul><li>Two</ol><ul><li></li></ul>
      <h2></h2><h2>See also</h2>Other.<img alt="A diagram" src="x"></main>
      <footer>© 2026</footer></body></html>"##;
    let cut = cut(body, Html, None, "x.html");
    assert_eq!(cut.title, "Max & Min");
    assert_eq!(
        cut.text,
        "# Max & Min\n\nThe max_connections parameter, see bold.\n\n```\nSELECT *\n  FROM t;\n```\n\n\
         work_mem\n: Memory.\n\nport\n: Number.\n\nName | Type\na | int\n\n1. One\n  - Nested\n2. Two\n\n\
         ## See also\n\nOther.A diagram"
    );
    assert_eq!(cut.chunks.len(), 2);
    assert_eq!(cut.chunks[0].headings, ["Max & Min"]);
    assert_eq!(cut.chunks[1].headings, ["Max & Min", "See also"]);
}

#[test]
fn a_header_in_an_article_is_read() {
    let cut = cut("<header>Site</header><article><header><h1>News</h1></header>Text</article>", Html, None, "x");
    assert_eq!((cut.title.as_str(), cut.text.as_str()), ("News", "# News\n\nText"));
}

#[test]
fn code_with_fences_in_it_gets_a_longer_one() {
    let cut = cut("<pre>a\n```\nb</pre>", Html, None, "x");
    assert_eq!(cut.text, "````\na\n```\nb\n````");
}

#[test]
fn titles_come_from_the_caller_the_document_and_the_uri_in_this_order() {
    let cases = [
        (Some("Given"), "# Own", Markdown, "Given"),
        (None, "# Own `code`", Markdown, "Own code"),
        (None, "text", Text, "b c.txt"),
        (None, "<h1>Own</h1>", Html, "Own"),
        (None, "<title> </title>", Html, "b c.txt"),
    ];
    for (given, body, media_type, title) in cases {
        assert_eq!(cut(body, media_type, given, "http://x/a/b c.txt/?q#f").title, title);
    }
    assert_eq!(title_of_uri("///"), "///");
}

#[test]
fn passages_overlap_and_stay_within_the_budget() {
    let body: String = (0..200).map(|n| format!("Sentence number {n} of the text. ")).collect();
    let chunker = small();
    let cut = chunker.cut(&body, Text, Some(""), "x").unwrap();
    check(&chunker, &cut);
    assert!(cut.chunks.len() > 100);
    let overlapping = cut.chunks.windows(2).filter(|pair| pair[1].range.start < pair[0].range.end).count();
    assert_eq!(chunker.id(), "v1:12:3:estimate");
    // A sentence is longer than the overlap here, so it is words that are repeated, if any.
    let long = Chunker::new(30, 10, None).unwrap().cut(&body, Text, Some(""), "x").unwrap();
    let overlapping =
        overlapping + long.chunks.windows(2).filter(|pair| pair[1].range.start < pair[0].range.end).count();
    assert!(overlapping > 0);
}

#[test]
fn a_note_heads_nothing_but_itself() {
    let body = "<h2>Uses</h2><p>First.</p><div class='note'><h3>Note</h3><p>Beside.</p></div><p>Second.</p>";
    let cut = cut(body, Html, None, "x");
    assert_eq!(cut.text, "## Uses\n\nFirst.\n\nNote\n\nBeside.\n\nSecond.");
    assert_eq!(cut.chunks.len(), 1);
}

#[test]
fn a_document_of_headings_is_refused() {
    let body = "# a\n".repeat(MAX_CHUNKS + 1);
    assert_eq!(chunker().cut(&body, Markdown, None, "x"), Err(TooManyChunks));
}

#[test]
fn long_headings_are_text() {
    let body = format!("# {}\n\nText", "long ".repeat(1_000));
    let cut = cut(&body, Markdown, None, "x.md");
    assert_eq!(cut.title, "x.md");
    assert!(cut.chunks.iter().all(|chunk| chunk.headings == ["x.md"]));
    let page = format!("<h1>{}<p>never closed", "long ".repeat(1_000));
    assert!(self::cut(&page, Html, None, "x").chunks.iter().all(|chunk| chunk.headings == ["x"]));
}

#[test]
fn hostile_pages_take_bounded_time_and_stack() {
    const MANY: usize = 20_000;
    let pages = [
        "<div>".repeat(MANY) + "deep",
        "<ul><li>".repeat(MANY) + "deep",
        "<table><tr><td>".repeat(MANY) + "deep",
        "<b>".repeat(MANY) + "deep",
        "<p hidden>".repeat(MANY) + "</p>".repeat(MANY).as_str() + "deep",
        "</p>".repeat(MANY) + "deep",
        "<pre>".repeat(MANY) + "deep",
        "<h1>".repeat(MANY) + "deep",
        format!("<a {}>deep</a>", (0..MANY).map(|n| format!("a{n} ")).collect::<String>()),
        "&amp".repeat(MANY) + " deep",
        "> ".repeat(MANY) + "deep",
        "- ".repeat(MANY) + "deep",
        "[".repeat(MANY) + "deep",
        "*a_ ".repeat(MANY) + "deep",
        "`".repeat(MANY) + "deep",
        "|a".repeat(MANY) + "deep",
        "# a\n".repeat(MANY) + "deep",
        "<!--".repeat(MANY) + "deep",
    ];
    for page in pages {
        for media_type in [Text, Markdown, Html] {
            let started = std::time::Instant::now();
            let cut = cut(&page, media_type, None, "x");
            let took = started.elapsed();
            // Unoptimised and beside other tests it is a second at most; quadratic, it is minutes.
            assert!(took.as_secs() < 20, "{:?} as {media_type} took {took:?}", &page[..20]);
            let is_comment = media_type == Html && page.starts_with("<!--");
            assert_eq!(cut.chunks.is_empty(), is_comment, "{:?} as {media_type}", &page[..20]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_string_is_cut_without_loss(body in ".{0,400}", which in 0..3_usize) {
        let chunker = small();
        check(&chunker, &chunker.cut(&body, [Text, Markdown, Html][which], None, "x").unwrap());
    }

    #[test]
    fn markup_soup_is_cut_without_loss(parts in prop::collection::vec(piece(), 0..60), which in 0..3_usize) {
        let chunker = small();
        check(&chunker, &chunker.cut(&parts.concat(), [Text, Markdown, Html][which], None, "x").unwrap());
    }
}

/// Pieces of markup and text that mean something to one of the readers.
fn piece() -> impl Strategy<Value = String> {
    const TAGS: [&str; 19] = [
        "div", "p", "li", "ul", "ol", "dl", "dt", "dd", "table", "tr", "td", "pre", "h1", "h3", "nav", "b", "br",
        "title", "script",
    ];
    prop_oneof![
        prop::sample::select(&TAGS[..]).prop_map(|tag| format!("<{tag}>")),
        prop::sample::select(&TAGS[..]).prop_map(|tag| format!("</{tag}>")),
        prop::sample::select(
            &[
                "\n",
                "\n\n",
                "# ",
                "## h\n",
                "```\n",
                "- ",
                "> ",
                "| a | b |\n",
                "---\n",
                "&nbsp;",
                "<!--",
                "\r\n",
                "\t"
            ][..]
        )
        .prop_map(str::to_owned),
        "[a-zé漢 .\u{300}]{0,20}",
    ]
}
