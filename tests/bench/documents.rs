//! What is in the documents of the rows: JSON as tasks write it, and in the amounts that they do.
//!
//! Rows take theirs from a pool, so that writing a backlog costs Postgres little, and so that every
//! run of every version has the same ones.

use fastrand::Rng;
use serde_json::{Value, json};

/// A multiple of nothing that the rows are numbered by.
pub const COUNT: usize = 499;

const OUTPUT_BYTES: usize = 2000;
const PAYLOAD_BYTES: usize = 500;
/// Far above what Postgres keeps inside of a row, and of digits that it does not compress.
const LARGE_BYTES: usize = 8000;

pub struct Documents {
    /// What a task returned.
    pub output: String,
    /// What it was started with.
    pub payload: String,
    /// How it failed, for the few that did.
    pub error: String,
    /// A session's.
    pub metadata: String,
    /// An output, and metadata, that Postgres stores outside of the row.
    pub large: String,
}

pub fn pool() -> impl Iterator<Item = Documents> {
    let mut rng = Rng::with_seed(4);
    (0..COUNT).map(move |_| documents(&mut rng))
}

fn documents(rng: &mut Rng) -> Documents {
    let mut output = json!({
        "status": "ok",
        "model": "gpt-4o-mini",
        "requestId": format!("req_{}", hex(rng, 24)),
        "finishedAt": "2026-11-20T10:11:12.345Z",
        "usage": {
            "promptTokens": rng.u32(100..4000),
            "completionTokens": rng.u32(10..900),
            "cost": f64::from(rng.u32(1..100_000)) / 1e6,
        },
        "warnings": null,
        "items": [],
    });
    grow(&mut output, OUTPUT_BYTES, rng, |rng| {
        json!({
            "id": format!("item_{}", hex(rng, 16)),
            "title": words(rng, 5),
            "score": f64::from(rng.u32(0..10_000)) / 1e4,
            "url": format!("https://example.com/{}/{}", words(rng, 1), hex(rng, 8)),
            "isNew": rng.bool(),
            "tags": [words(rng, 1), words(rng, 1)],
        })
    });
    let mut payload = json!({
        "userId": format!("user_{}", hex(rng, 20)),
        "email": format!("{}@example.com", hex(rng, 8)),
        "locale": "en-GB",
        "retry": false,
        "items": [],
    });
    grow(
        &mut payload,
        PAYLOAD_BYTES,
        rng,
        |rng| json!({"sku": hex(rng, 10), "quantity": rng.u32(1..9), "note": words(rng, 3)}),
    );
    let error = json!({
        "type": "BUILT_IN_ERROR",
        "name": "TypeError",
        "message": format!(
            "Cannot read properties of undefined (reading '{}') in run_{} after {} ms",
            words(rng, 1), hex(rng, 21), rng.u32(1000..90_000)
        ),
        "stackTrace": (1..8)
            .map(|n| format!("    at {} (/app/dist/src/{}.js:{n}7:1{n})", words(rng, 1), hex(rng, 6)))
            .collect::<Vec<_>>()
            .join("\n"),
    });
    let metadata = json!({
        "plan": "pro",
        "agent": words(rng, 1),
        "turns": rng.u32(1..40),
        "lastMessageId": format!("msg_{}", hex(rng, 20)),
    });
    let large = json!({"kind": "report", "pages": rng.u32(1..99), "body": hex(rng, LARGE_BYTES)});
    Documents {
        output: output.to_string(),
        payload: payload.to_string(),
        error: error.to_string(),
        metadata: metadata.to_string(),
        large: large.to_string(),
    }
}

/// Adds items until the document is that long.
fn grow(document: &mut Value, bytes: usize, rng: &mut Rng, item: impl Fn(&mut Rng) -> Value) {
    let mut length = document.to_string().len();
    let Some(items) = document["items"].as_array_mut() else { unreachable!("it has items") };
    while length < bytes {
        let item = item(rng);
        length += item.to_string().len() + 1;
        items.push(item);
    }
}

fn hex(rng: &mut Rng, digits: usize) -> String {
    (0..digits).map(|_| char::from(b"0123456789abcdef"[rng.usize(..16)])).collect()
}

fn words(rng: &mut Rng, count: usize) -> String {
    const WORDS: [&str; 24] = [
        "invoice",
        "summary",
        "daily",
        "customer",
        "import",
        "export",
        "video",
        "transcript",
        "render",
        "email",
        "campaign",
        "order",
        "refund",
        "stock",
        "sync",
        "webhook",
        "backfill",
        "report",
        "image",
        "resize",
        "embedding",
        "search",
        "index",
        "digest",
    ];
    let words: Vec<&str> = (0..count).map(|_| WORDS[rng.usize(..WORDS.len())]).collect();
    words.join(" ")
}
