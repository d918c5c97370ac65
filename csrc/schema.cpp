// SPDX-License-Identifier: Apache-2.0
// Table of contents: the schema of every operator. Shape letters: N rows, D dim, C classes, R rows
// of a feature bank, L labels, E edges, K neighbours. Kernels live in ops/<backend>/<op>*.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(fcl, m) {
  // K1. (N, D), (C, D) -> lse (N,) and softmax-weighted mean (N, Dv) of values (default
  // prototypes). exclude (N,) int64 removes one class per row from the sum (negative: none), or, on
  // the CPU, the set of classes that a CSR of sets has under that number, exclude_crow (L + 1,) and
  // exclude_col (E,) int64, each class once and in order. With normalize the rows of prototypes
  // count at unit length, also as values.
  m.def(
      "softmax_readout(Tensor embeddings, Tensor prototypes, Tensor? values, Tensor? exclude, "
      "float scale, bool need_mean, bool normalize=False, Tensor? packed=None, "
      "Tensor? squared_norms=None, Tensor? exclude_crow=None, Tensor? exclude_col=None) "
      "-> (Tensor logsumexp, Tensor mean)");
  // Frozen prototypes as the CPU kernels of softmax_readout and compat_loss multiply them
  // (ops/pack_prototypes.h), so that no pass has to pack them; same results. float32 and
  // float64.
  m.def(
      "pack_prototypes(Tensor prototypes, bool normalize) "
      "-> (Tensor packed, Tensor squared_norms)");
  // Gradients of sum_i grad_logsumexp_i lse_i + grad_mean_i . mean_i; those not needed are empty.
  // coefficient_i = grad_logsumexp_i - grad_mean_i . mean_i.
  m.def(
      "softmax_readout_backward(Tensor embeddings, Tensor prototypes, Tensor? values, "
      "Tensor? exclude, Tensor logsumexp, Tensor coefficient, Tensor? grad_mean, float scale, "
      "bool need_embeddings, bool need_prototypes, bool need_values, bool normalize=False, "
      "Tensor? exclude_crow=None, Tensor? exclude_col=None) "
      "-> (Tensor grad_embeddings, Tensor grad_prototypes, Tensor grad_values)");
  // K1 with its loss: cross-entropy of rows against prototypes (formulas: ops/compat_loss.h), with
  // its gradient to embeddings, already divided by what the reduction divides by. need_prototypes
  // fills what the backward op takes: unit rows (if normalize) and state (4, N). On the CPU in
  // float32, logits (N / 128 rounded up, C, 128) may be kept for it: time for memory.
  m.def(
      "compat_loss(Tensor embeddings, Tensor prototypes, Tensor labels, Tensor? mean_prototype, "
      "float scale, float margin, bool arcface, float label_smoothing, bool normalize, "
      "int ignore_index, str reduction, bool need_embeddings, "
      "bool need_prototypes, Tensor(a!)? logits=None, Tensor? packed=None, "
      "Tensor? squared_norms=None) "
      "-> (Tensor loss, Tensor grad_embeddings, Tensor unit_embeddings, Tensor state)");
  // Gradient to prototypes; embeddings are the unit rows where normalize was set. grad_loss has the
  // shape of the loss.
  m.def(
      "compat_loss_backward(Tensor embeddings, Tensor prototypes, Tensor labels, Tensor state, "
      "Tensor grad_loss, float scale, float label_smoothing, bool normalize, int ignore_index, "
      "Tensor? logits=None) -> Tensor");
  // Loss and both gradients (for a gradient of 1 to the loss) in one call, for reductions mean and
  // sum: where a problem is small, calls cost more than arithmetic.
  m.def(
      "compat_loss_gradients(Tensor embeddings, Tensor prototypes, Tensor labels, "
      "Tensor? mean_prototype, float scale, float margin, bool arcface, float label_smoothing, "
      "bool normalize, int ignore_index, str reduction) "
      "-> (Tensor loss, Tensor grad_embeddings, Tensor grad_prototypes)");
  // K1 over a sparse set of rows per label: CSR label -> rows of a bank (R, D), with log weights.
  // A negative label has the empty set: lse = -inf, mean = 0. With normalize bank rows count at
  // unit length.
  m.def(
      "sparse_readout(Tensor embeddings, Tensor rows, Tensor labels, Tensor crow_indices, "
      "Tensor col_indices, Tensor? log_weights, float scale, bool need_mean, "
      "bool normalize=False) "
      "-> (Tensor logsumexp, Tensor mean)");
  // Gradient to the bank, row by row without atomics: row_crow/row_labels/row_log_weights are the
  // transposed CSR (row -> labels), query_crow/query_index list the queries of each label.
  m.def(
      "sparse_readout_backward_rows(Tensor embeddings, Tensor rows, Tensor logsumexp, "
      "Tensor coefficient, Tensor row_crow, Tensor row_labels, Tensor? row_log_weights, "
      "Tensor query_crow, Tensor query_index, float scale, bool normalize=False) -> Tensor");
  // K2. Exactly num_steps of Z <- damping P Z + (1 - damping) F, from Z = F; P (N, N) in CSR.
  m.def(
      "random_walk(Tensor crow_indices, Tensor col_indices, Tensor values, Tensor features, "
      "float damping, int num_steps) -> Tensor");
  // Gradients of the exact-step walk to features (N, D) and edge values (E,).
  m.def(
      "random_walk_backward(Tensor crow_indices, Tensor col_indices, Tensor values, "
      "Tensor features, Tensor grad_output, float damping, int num_steps, bool need_features, "
      "bool need_values) -> (Tensor grad_features, Tensor grad_values)");
  // num_steps more steps from state, the first num_bf16_steps of them with results stored as
  // bfloat16. state has the dtype of features (float32 or float64), or is bfloat16 beside float32
  // features; the result is bfloat16 if no other step follows. No gradient.
  m.def(
      "random_walk_resume(Tensor crow_indices, Tensor col_indices, Tensor values, Tensor state, "
      "Tensor features, float damping, int num_steps, int num_bf16_steps) -> Tensor");
  // A graph in windows of 16 rows, each column that they gather once (ops/walk_windows.h). CPU
  // only.
  m.def(
      "walk_windows(Tensor crow_indices, Tensor col_indices) -> (Tensor window_crow, "
      "Tensor window_col, Tensor chunk_crow, Tensor positions, Tensor edge_order)");
  // The walk over such windows, values in their order. CUDA only, no gradient; finite features.
  m.def(
      "random_walk_union(Tensor window_crow, Tensor window_col, Tensor chunk_crow, "
      "Tensor positions, Tensor values, Tensor features, float damping, int num_steps, "
      "int num_bf16_steps=0) -> Tensor");
  // The walk to convergence: stops when the distance to the limit is provably <= tol relative to
  // the features, or raises at max_steps. norm "max" suits rows of P that sum to at most 1,
  // "sum" columns that do. num_steps comes back as a 0-d int64 tensor on the CPU.
  m.def(
      "random_walk_tol(Tensor crow_indices, Tensor col_indices, Tensor values, Tensor features, "
      "float damping, float tol, int max_steps, str norm) -> (Tensor state, Tensor num_steps)");
  // out_e = left[row of e] . right[col of e] for every edge (sampled dense-dense product).
  m.def("edge_dot(Tensor crow_indices, Tensor col_indices, Tensor left, Tensor right) -> Tensor");
  // CSR (N, M) -> CSR (M, N); edge_order maps each transposed edge to its original position.
  m.def(
      "csr_transpose(Tensor crow_indices, Tensor col_indices, int num_columns) "
      "-> (Tensor crow_indices, Tensor col_indices, Tensor edge_order)");
  // Where walks from each node end, by class: CSR (N, C) of (1 - damping)(I - damping P)^-1 Y with
  // one-hot labels Y (negative: none), each row cut by at most drop per step. CPU only.
  m.def(
      "class_walk(Tensor crow_indices, Tensor col_indices, Tensor values, Tensor labels, "
      "int num_classes, float damping, float drop, int num_steps) "
      "-> (Tensor crow_indices, Tensor col_indices, Tensor values)");
  // Renumbers nodes for locality (by order if given, else by one the kernel finds) and sorts
  // columns inside rows: new node i was order[i], new edge e was edge_order[e]. CPU only.
  m.def(
      "graph_prepare(Tensor crow_indices, Tensor col_indices, Tensor? order=None) "
      "-> (Tensor order, Tensor crow_indices, Tensor col_indices, Tensor edge_order)");
  // Exact k nearest other rows by "cosine", "ip" or "l2" (negative squared distance), best first.
  m.def("knn_graph(Tensor features, int k, str metric) -> (Tensor indices, Tensor similarities)");
  // The same within consecutive segments of rows, S + 1 offsets; -1 and 0 where there are too few.
  m.def(
      "knn_graph_segments(Tensor features, Tensor offsets, int k, str metric) "
      "-> (Tensor indices, Tensor similarities)");
  // The k nearest rows of gallery (G, D) of each row of query (Q, D), likewise.
  m.def(
      "knn_search(Tensor query, Tensor gallery, int k, str metric) "
      "-> (Tensor indices, Tensor similarities)");
}
