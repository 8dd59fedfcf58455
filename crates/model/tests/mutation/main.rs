//! Damaged files must give an answer or an error, never a panic and never a huge allocation.
//!
//! Each test mutates good inputs for ten seconds from a seed that it prints; `SEED` below replays one. The same inputs
//! feed the cargo-fuzz targets in `fuzz/`.

use std::alloc::{GlobalAlloc, Layout, System};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use spindle_model::{ChatInput, ChatTemplate, Checkpoint, Message, ModelConfig, Opened, open_gguf_bytes};

const TIME: Duration = Duration::from_secs(10);

/// Put the number that a failure printed here to replay it.
const SEED: Option<u64> = None;

/// No input here is larger than 200 KB: nothing that is made of it should need more at once.
const ALLOCATION_MAX: usize = 64 << 20;

/// Remembers the largest single request.
struct Watching;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps `alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps `dealloc`'s contract.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LARGEST.fetch_max(size, Ordering::Relaxed);
        // SAFETY: the caller keeps `realloc`'s contract.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// Numbers that parsers trip over.
const NUMBERS: [u64; 10] = [0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFF_FFFF, 0xFFFF_FFFF, 1 << 40, u64::MAX >> 1, u64::MAX];

/// One to eight changes to the first `head` bytes, and sometimes a cut anywhere.
fn mutate(bytes: &mut Vec<u8>, head: usize, random: &mut Random) {
    for _ in 0..=random.below(8) {
        let head = head.min(bytes.len());
        if head == 0 {
            return;
        }
        let at = random.below(head);
        match random.below(8) {
            0..=1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes[at] = random.next() as u8,
            3 => {
                let number = NUMBERS[random.below(NUMBERS.len())].to_le_bytes();
                let width = [1, 2, 4, 8][random.below(4)].min(bytes.len() - at);
                bytes[at..at + width].copy_from_slice(&number[..width]);
            }
            4 => {
                let end = (at + 1 + random.below(40)).min(bytes.len());
                bytes.drain(at..end);
            }
            5 => {
                let end = (at + 1 + random.below(40)).min(bytes.len());
                let copy = bytes[at..end].to_vec();
                let to = random.below(head);
                bytes.splice(to..to, copy);
            }
            6 => {
                let (from, length) = (random.below(head), 1 + random.below(24));
                let length = length.min(bytes.len() - from.max(at));
                bytes.copy_within(from..from + length, at);
            }
            _ if random.below(4) == 0 => {
                let length = random.below(bytes.len());
                bytes.truncate(length);
            }
            _ => {}
        }
    }
}

/// Runs `read` on mutations of `inputs` until the time is over.
fn check(name: &str, inputs: &[Vec<u8>], head: usize, read: impl Fn(Vec<u8>) -> bool) {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
    let seed = SEED.unwrap_or(clock);
    println!("{name}: seed {seed}");
    let mut random = Random(seed);
    let (start, mut runs, mut accepted) = (Instant::now(), 0_u64, 0_u64);
    while start.elapsed() < TIME {
        let mut bytes = inputs[random.below(inputs.len())].clone();
        mutate(&mut bytes, head, &mut random);
        let copy = bytes.clone();
        match catch_unwind(AssertUnwindSafe(|| read(copy))) {
            Ok(readable) => accepted += u64::from(readable),
            Err(_) => {
                let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.crash"));
                std::fs::write(&path, &bytes).unwrap();
                panic!("{name}: seed {seed}, run {runs} panicked; the input is {}", path.display());
            }
        }
        let largest = LARGEST.load(Ordering::Relaxed);
        assert!(largest < ALLOCATION_MAX, "{name}: seed {seed}, run {runs} asked for {largest} bytes at once");
        runs += 1;
    }
    println!("{name}: {runs} runs, {accepted} accepted, largest allocation {} bytes", LARGEST.load(Ordering::Relaxed));
    assert!(0 < runs && accepted < runs, "{name}: seed {seed}: {accepted} of {runs} accepted");
}

fn tiny(file: &str) -> Vec<u8> {
    std::fs::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../testing/golden/tiny").join(file)).unwrap()
}

/// Reads all that an opened model offers.
fn use_all(opened: &Opened) {
    for spec in opened.checkpoint.tensors() {
        let tensor = opened.checkpoint.tensor(&spec.name).unwrap();
        assert_eq!(tensor.data.len(), spec.len());
    }
    let ids = opened.tokenizer.encode("hello world 世界 123", true).unwrap_or_default();
    assert!(ids.iter().all(|id| (*id as usize) < opened.config().vocab_size));
    let mut detokenizer = opened.tokenizer.detokenizer(&[], true);
    for id in ids.into_iter().chain([0, 5, u32::MAX]) {
        let _ = (detokenizer.push(id), opened.tokenizer.token_bytes(id));
    }
    if let Ok(chat) = opened.chat() {
        let messages = [Message::new("user", "hello")];
        let _ = chat.render(&ChatInput { messages: &messages, ..ChatInput::default() });
    }
}

#[test]
fn gguf() {
    let inputs = [tiny("llama/llama.gguf"), tiny("qwen3/qwen3-00002-of-00003.gguf")];
    check("gguf", &inputs, 14_000, |bytes| match open_gguf_bytes("mutated.gguf", bytes) {
        Ok(opened) => {
            use_all(&opened);
            true
        }
        Err(error) => error.to_string().is_empty(),
    });
}

#[test]
fn safetensors() {
    let json = tiny("qwen2/config.json");
    let config = ModelConfig::from_hugging_face(&json, "config.json", "qwen2").unwrap();
    check("safetensors", &[tiny("qwen2/model.safetensors")], 3200, |bytes| {
        match Checkpoint::from_safetensors_bytes("mutated.safetensors", bytes, config.clone()) {
            Ok(checkpoint) => {
                for spec in checkpoint.tensors() {
                    assert_eq!(checkpoint.tensor(&spec.name).unwrap().data.to_bf16().len(), spec.len());
                }
                true
            }
            Err(error) => error.to_string().is_empty(),
        }
    });
}

#[test]
fn config() {
    let inputs = ["llama3-scaled", "qwen2-yarn", "qwen2"].map(|name| tiny(&format!("{name}/config.json")));
    check("config", &inputs, 1000, |bytes| match ModelConfig::from_hugging_face(&bytes, "config.json", "mutated") {
        Ok(config) => {
            assert_eq!(config.rope.inv_freq.len(), config.head_dim / 2);
            assert_eq!(config.group() * config.kv_heads, config.q_heads);
            true
        }
        Err(error) => error.to_string().is_empty(),
    });
}

#[test]
fn chat_template() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/suite/templates");
    let inputs = ["blocks", "llama3", "mistral", "qwen"]
        .map(|name| std::fs::read(folder.join(format!("{name}.jinja"))).unwrap());
    let mut assistant = Message::new("assistant", "<think>\na\n</think>\n\nb");
    let calls = serde_json::json!([{"function": {"name": "f", "arguments": {"a": [1, 2]}}}]);
    assistant.other.insert("tool_calls".into(), calls);
    let messages = [Message::new("system", "s"), Message::new("user", "hello"), assistant, Message::new("tool", "t")];
    let tools = [serde_json::json!({"type": "function", "function": {"name": "f", "parameters": {}}})];
    check("chat_template", &inputs, 8000, |bytes| {
        let source = String::from_utf8_lossy(&bytes);
        let Ok(template) = ChatTemplate::new(&source, "mutated.jinja", "<s>", "</s>") else { return false };
        let input =
            ChatInput { messages: &messages, tools: &tools, add_generation_prompt: true, ..ChatInput::default() };
        template.render(&input).is_ok()
    });
}
