//! What a model computes: architectures as block programs, tokenizers, chat templates.

pub mod template;
