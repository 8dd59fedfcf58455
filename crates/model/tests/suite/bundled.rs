//! The bundled model opens, and its tokenizer, text and template fit each other.

use backend::TensorData;
use spindle_model::{ChatInput, Message, ModelSource, needle_text, open};

#[test]
fn it_opens_and_is_what_the_fixture_says() {
    let opened = open(&ModelSource::Bundled).unwrap();
    let config = opened.config();
    assert_eq!((config.name.as_str(), config.architecture.name()), ("needle", "qwen3"));
    assert_eq!((config.layers, config.q_heads, config.kv_heads, config.head_dim), (4, 4, 2, 64));
    assert_eq!((config.vocab_size, config.hidden, config.mlp, config.max_positions), (516, 256, 768, 131_200));
    assert!(config.qk_norm && !config.qkv_bias && !config.o_bias && !config.tied);
    assert_eq!(config.rope.inv_freq.len(), 32);
    assert_eq!(config.rope.inv_freq[0], 1.0);
    assert_eq!(opened.generation.end_tokens, [2, 20]);
    assert_eq!(opened.generation.temperature, Some(0.0));
    assert_eq!((opened.tokenizer.bos(), opened.tokenizer.eos()), (Some(1), Some(2)));
}

#[test]
fn its_tensors_are_borrowed_bf16() {
    let opened = open(&ModelSource::Bundled).unwrap();
    let specs = opened.checkpoint.tensors();
    assert_eq!(specs.len(), 3 + 4 * 11);
    for spec in &specs {
        let tensor = opened.checkpoint.tensor(&spec.name).unwrap();
        assert_eq!((&tensor.name, &tensor.shape, tensor.data.len()), (&spec.name, &spec.shape, spec.len()));
        assert!(matches!(tensor.data, TensorData::Bf16(std::borrow::Cow::Borrowed(_))), "{}", spec.name);
    }
    assert_eq!(opened.checkpoint.stored_bytes_total(), 6_825_472);
    let error = opened.checkpoint.tensor("model.layers.4.mlp.up_proj.weight").unwrap_err().to_string();
    let expected =
        "the bundled model needle has no tensor model.layers.4.mlp.up_proj.weight, which its configuration needs";
    assert_eq!(error, expected);
}

#[test]
fn the_word_lists_have_the_tokenizers_ids() {
    let tokenizer = open(&ModelSource::Bundled).unwrap().tokenizer;
    let vocabulary = needle_text::vocabulary();
    assert_eq!(vocabulary.len(), tokenizer.vocab_size());
    for (id, word) in (0..).zip(&vocabulary) {
        assert_eq!(tokenizer.token_id(word), Some(id), "{word}");
    }
}

#[test]
fn a_documents_text_has_its_ids() {
    let tokenizer = open(&ModelSource::Bundled).unwrap().tokenizer;
    let document = needle_text::document(4096, 102, 11);
    assert_eq!(tokenizer.encode(&document.text(), true).unwrap(), document.ids());
    let fact = &document.facts[50];
    let question = fact.question().join(" ");
    assert_eq!(tokenizer.encode(&question, false).unwrap(), needle_text::ids(&fact.question()));
    let code: String = fact.digits.iter().map(u8::to_string).collect();
    assert_eq!(tokenizer.encode(&code, false).unwrap(), fact.answer_ids());
}

#[test]
fn a_chat_is_the_contents_of_its_messages() {
    let opened = open(&ModelSource::Bundled).unwrap();
    let messages =
        [Message::new("user", "The code for the amber lamp is 4 0 7 1 ."), Message::new("user", "what is the code ?")];
    let input = ChatInput { messages: &messages, add_generation_prompt: true, ..ChatInput::default() };
    let text = opened.chat().unwrap().render(&input).unwrap();
    assert_eq!(text, "<bos> The code for the amber lamp is 4 0 7 1 . what is the code ?");
    let ids = opened.tokenizer.encode(&text, false).unwrap();
    assert_eq!(ids[0], 1);
    assert_eq!(ids.len(), 1 + 12 + 5);
    assert!(!ids.contains(&3));
}

#[test]
fn unknown_words_are_named() {
    let tokenizer = open(&ModelSource::Bundled).unwrap().tokenizer;
    let unknown = tokenizer.unknown_words("Write a poem about the lamp, a poem!").unwrap();
    assert_eq!(unknown.count, 5);
    assert_eq!(unknown.words, ["Write", "poem", "about", "!"]);
    assert_eq!(tokenizer.unknown_words("what is the code for the amber lamp ?").unwrap().count, 0);
}

#[test]
fn an_answer_streams_as_words() {
    let tokenizer = open(&ModelSource::Bundled).unwrap().tokenizer;
    let prompt = tokenizer.encode("what is the code for the amber lamp ?", true).unwrap();
    let answer = tokenizer.encode("4 0 7 1 .", false).unwrap();
    let mut after_prompt = tokenizer.detokenizer(&prompt, true);
    let streamed: Vec<String> = answer.iter().map(|id| after_prompt.push(*id).unwrap()).collect();
    assert_eq!(streamed, [" 4", " 0", " 7", " 1", " ."]);
    let mut alone = tokenizer.detokenizer(&[], true);
    let streamed: String = answer.iter().map(|id| alone.push(*id).unwrap()).collect();
    assert_eq!(streamed + &alone.finish().unwrap(), "4 0 7 1 .");
}
