//! Every kind: defaults, rules, strategy and rows, compared with upstream's documented behaviour.
