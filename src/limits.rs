//! Every bound on outside input, with its unit and its reason.
//!
//! Nothing read from outside is allocated, multiplied or looped over before it passed one of these.

/// Bytes of one string in a GGUF file. llama.cpp accepts 2^30; no real key or token is near 2^24.
pub const STRING_BYTES_MAX: u64 = 1 << 24;

/// Elements of one metadata array. The largest real ones are vocabularies of about 2^18.
pub const ARRAY_LEN_MAX: u64 = 1 << 24;

/// Metadata entries of one file.
pub const METADATA_LEN_MAX: u64 = 1 << 16;

/// Tensors of one file, shards together.
pub const TENSORS_MAX: u64 = 1 << 20;

/// Bytes of a tensor's name, the terminating zero of llama.cpp's 64 left out.
pub const TENSOR_NAME_BYTES_MAX: usize = 63;

/// Dimensions of a tensor: GGML_MAX_DIMS.
pub const DIMENSIONS_MAX: u32 = 4;

/// Values in one tensor: keeps every byte count far from overflowing 64 bits.
pub const TENSOR_LEN_MAX: u64 = 1 << 44;

/// Shards of one model: the file names have five digits.
pub const SHARDS_MAX: u32 = 99_999;

/// Layers of a model. The deepest real ones have about 130.
pub const LAYERS_MAX: u64 = 1 << 12;

/// Any width of a model: embedding, heads, feed-forward. The widest real ones have about 2^17.
pub const WIDTH_MAX: u64 = 1 << 20;

/// Experts of a layer. The largest real ones have some 500.
pub const EXPERTS_MAX: u64 = 1 << 12;

/// Entries of a vocabulary.
pub const VOCABULARY_MAX: u64 = 1 << 24;

/// Cells of context a model may claim; what is reserved is chosen by the user.
pub const CONTEXT_MAX: u64 = 1 << 31;

/// Tokens of a vocabulary, and merges of one: real ones stay below 2^19.
pub const VOCAB_LEN_MAX: usize = 1 << 22;

/// Bytes of one token's text. The longest known are runs of some hundred spaces.
pub const TOKEN_BYTES_MAX: usize = 1 << 14;

/// Bytes of the texts of all special tokens together: they become one automaton.
pub const SPECIAL_TOKENS_BYTES_MAX: usize = 1 << 22;

/// Bytes of a text to tokenize, so that positions fit 32 bits in every form of it.
pub const TEXT_BYTES_MAX: usize = 1 << 30;

/// Bytes of a chat template's source. Real ones have up to 30 thousand.
pub const TEMPLATE_BYTES_MAX: usize = 1 << 20;

/// Bytes a chat template may render to.
pub const RENDERED_BYTES_MAX: usize = 1 << 26;

/// What a chat template may use up: one per instruction and per 64 bytes of data it makes, so that
/// it ends within about a second and 256 MB.
pub const TEMPLATE_FUEL: u64 = 4_000_000;

/// Tokens that a sampler remembers for its penalties.
pub const REPEAT_LAST_MAX: usize = 1 << 20;

/// Bytes of a file with measurements of a GPU. One kind of matrix takes about 150.
pub const TUNING_BYTES_MAX: u64 = 1 << 20;

/// Bytes of a file with what a GPU's driver compiled. A model has some twenty shaders of a hundred
/// kilobytes at most.
pub const COMPILED_BYTES_MAX: u64 = 1 << 28;

/// Bytes of the header of a safetensors file, as its reference implementation has it.
pub const SAFETENSORS_HEADER_BYTES_MAX: u64 = 100_000_000;

/// Bytes of a JSON or template file beside the weights of a Hugging Face folder. The largest, a
/// tokenizer of 2^18 tokens, has some 30 million.
pub const FOLDER_JSON_BYTES_MAX: u64 = 1 << 28;

/// Bytes of a file of measured sensitivities. A weight takes about 100.
pub const SENSITIVITY_BYTES_MAX: u64 = 1 << 26;

/// Bytes of a line of a kept conversion: a name, a few numbers and lengths.
pub const JOURNAL_LINE_BYTES_MAX: u64 = 1 << 12;
