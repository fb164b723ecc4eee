//! Between text and token ids: what a person writes, and what the model reads.
//!
//! | module | what it does |
//! |---|---|
//! | [`tokenizer`] | text to token ids and back, all at once or token by token |
//! | [`chat_template`] | a conversation as the text that the model was trained on |
//! | [`grammar`] | holds an answer to a JSON schema |
//! | [`tools`] | functions that a model may ask for, and its calls |
//! | [`stop`] | ends an answer at a given text |

pub mod chat_template;
pub mod grammar;
pub mod stop;
pub mod tokenizer;
pub mod tools;
