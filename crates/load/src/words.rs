//! 128 short English words for prompts of text. The bundled needle model knows them all.

/// The words; 7 bits of a random number choose one.
pub(crate) const WORDS: [&str; 128] = [
    "amber", "ancient", "brave", "bright", "broken", "calm", "careful", "cheerful", "clever", "cloudy", "cold",
    "copper", "damp", "dark", "distant", "dusty", "early", "empty", "faded", "flat", "foggy", "fragile", "frozen",
    "gentle", "golden", "grand", "green", "heavy", "hidden", "hollow", "honest", "humble", "idle", "iron", "keen",
    "kind", "large", "late", "lazy", "light", "little", "lonely", "loud", "lucky", "narrow", "neat", "north", "odd",
    "old", "open", "orange", "pale", "plain", "proud", "purple", "quick", "quiet", "rare", "red", "rich", "rough",
    "round", "silent", "silver", "anchor", "apple", "arrow", "barn", "barrel", "basket", "bell", "bench", "bird",
    "blanket", "boat", "bottle", "bridge", "bucket", "button", "cabin", "candle", "castle", "circle", "clock", "cloud",
    "coat", "cottage", "crown", "desert", "diamond", "drum", "eagle", "engine", "farm", "feather", "ferry", "field",
    "forest", "fountain", "garden", "gate", "hammer", "harbor", "hill", "island", "jacket", "kettle", "key", "ladder",
    "lake", "lamp", "lantern", "leaf", "lemon", "letter", "market", "meadow", "mill", "mirror", "moon", "mountain",
    "needle", "ocean", "orchard", "palace", "path", "piano", "river",
];
