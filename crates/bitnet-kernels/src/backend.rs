//! The operations that a decoder layer is made of, for one device. One operation is one parallel phase.
//!
//! Shapes are `[tokens, features]` row-major. A batch is flat: its tokens may belong to many sequences.

use std::ops::Range;
use std::sync::Arc;

use crate::dense::DenseMatrix;
use crate::head::{HeadRecord, HeadType, InvalidHead};
use crate::kv::KvShape;
use crate::logits::{Logits, Wanted};
use crate::profile::Profile;
use crate::scalar::elementwise::Activation;
use crate::scalar::rope::RopeTable;
use crate::stored::{Stored, StoredParts};
use crate::ternary::TernaryMatrix;

/// New tokens of one sequence within a batch, and where that sequence's keys and values lie.
///
/// The spans of a batch follow each other and cover it from row 0 on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The tokens' rows in the batch.
    pub rows: Range<usize>,
    /// Position of the first of them in its sequence.
    pub start: usize,
    /// The sequence's pages, enough for all positions up to and including the last of `rows`.
    pub pages: Vec<u32>,
}

/// RMSNorm with its weight, `eps` in units of x².
pub struct Norm<V> {
    /// `[features]`.
    pub weight: V,
    /// Added to the mean square.
    pub eps: f32,
}

/// One device's weights, activations and operations.
pub trait Backend: Send + Sync + Sized + 'static {
    /// A ternary matrix in the device's own layout.
    type Ternary: Send + Sync;
    /// An embedding table.
    type Dense: Send + Sync;
    /// An output head.
    type Head: Send + Sync;
    /// A vector of weights.
    type Vector: Send + Sync;
    /// Floats `[tokens, features]`, resized at will.
    type Activations: Send;
    /// Keys and values of one layer.
    type KvLayer: Send;
    /// Working memory of the operations; one for each thread that calls them.
    type Scratch: Send;

    /// Prepares the calling thread, which is to compute steps, such as by binding it to a processor. Called once by each.
    ///
    /// # Errors
    /// If the system refuses.
    fn attach(&self) -> std::io::Result<()> {
        Ok(())
    }

    /// What takes the time of steps, when asked to.
    fn profile(&self) -> &Arc<Profile>;

    /// Runs `compute`, which makes one step of `tokens` tokens; a backend may choose how many threads take part.
    fn step<R>(&self, tokens: usize, compute: impl FnOnce() -> R) -> R {
        let _ = tokens;
        compute()
    }

    /// Rearranges ternary weights for this device, once.
    fn upload_ternary(&self, weights: TernaryMatrix) -> Self::Ternary;
    /// Bytes of a ternary matrix in the device's layout: what one product reads.
    fn ternary_bytes(&self, w: &Self::Ternary) -> usize;
    /// Takes an embedding table, sharing its bytes where that is possible.
    fn upload_dense(&self, weights: DenseMatrix) -> Self::Dense;
    /// Takes an output head in one of its forms. `taken` hears of rows whose stored bytes are not needed any more; a head
    /// that stays as it is stored shares them instead.
    ///
    /// # Errors
    /// If the weights do not fit the form.
    fn upload_head(
        &self,
        weights: DenseMatrix,
        form: HeadType,
        taken: &(dyn Fn(Range<usize>) + Sync),
    ) -> Result<Self::Head, InvalidHead>;
    /// Where a head that leaves out logits counts what happens; nothing for one that never does.
    fn head_record(&self, head: &Self::Head) -> Option<Arc<HeadRecord>> {
        let _ = head;
        None
    }

    /// Names the layout that uploaded ternary matrices and a head of this form have, so that weights which were stored under
    /// another name are not taken for it.
    fn layout(&self, head: HeadType) -> String;
    /// A ternary matrix as plain bytes, to be kept in a file.
    fn store_ternary<'a>(&self, w: &'a Self::Ternary) -> StoredParts<'a>;
    /// The matrix `[rows, cols]` that [`store_ternary`](Self::store_ternary) made these bytes of, sharing them; none if they
    /// are something else.
    fn restore_ternary(&self, rows: usize, cols: usize, stored: &Stored) -> Option<Self::Ternary>;
    /// A head as plain bytes, which may be several matrices; none where it is used as it is in the model's file.
    fn store_head<'a>(&self, head: &'a Self::Head) -> Vec<StoredParts<'a>>;
    /// The head `[rows, cols]` that [`store_head`](Self::store_head) made these bytes of, sharing them; none if they are
    /// something else.
    fn restore_head(&self, rows: usize, cols: usize, stored: &[Stored]) -> Option<Self::Head>;
    /// Takes a vector.
    fn upload_vector(&self, weights: Vec<f32>) -> Self::Vector;
    /// An empty matrix.
    fn activations(&self) -> Self::Activations;
    /// A cache of this shape.
    fn kv_layer(&self, shape: KvShape) -> Self::KvLayer;
    /// Empty working memory.
    fn scratch(&self) -> Self::Scratch;
    /// A ternary matrix as it lies in this process's memory, for those who count that; nothing on a device with its own.
    fn ternary_memory<'a>(&self, w: &'a Self::Ternary) -> &'a [u8];
    /// The same of an embedding table.
    fn dense_memory<'a>(&self, table: &'a Self::Dense) -> &'a [u8];
    /// The same of an output head, which may lie in several places.
    fn head_memory<'a>(&self, head: &'a Self::Head) -> Vec<&'a [u8]>;
    /// The same of a layer's keys and values, whether they have ever been written or not.
    fn kv_memory<'a>(&self, kv: &'a Self::KvLayer) -> &'a [u8];
    /// Gives memory of pages back to the system whose content is of no use any more; they may be written again.
    fn give_back(&self, kv: &mut Self::KvLayer, pages: Range<usize>);
    /// Bytes of this process's memory that activations have.
    fn activation_bytes(&self, x: &Self::Activations) -> usize;
    /// The same of working memory.
    fn scratch_bytes(&self, scratch: &Self::Scratch) -> usize;
    /// A copy of the activations in host memory, for tools and tests.
    fn download(&self, x: &Self::Activations) -> Vec<f32>;

    /// Says that rows of a table will be embedded soon, so that a device may fetch them meanwhile.
    fn foresee(&self, _table: &Self::Dense, _ids: &[u32]) {}

    /// `out[t] = table[ids[t]]`.
    fn embed(&self, table: &Self::Dense, ids: &[u32], out: &mut Self::Activations);

    /// Queries, keys and values, `W_i · q(norm(x))`: queries and keys turned by their positions, `q` kept and keys and values
    /// stored in their slots.
    fn project(
        &self,
        scratch: &mut Self::Scratch,
        x: &Self::Activations,
        norm: &Norm<Self::Vector>,
        projection: Projection<'_, Self>,
        q: &mut Self::Activations,
        kv: &mut Self::KvLayer,
    );

    /// `y += W · q(norm(x))`, or without the norm: `o_proj`, `down_proj`.
    fn project_add(
        &self,
        scratch: &mut Self::Scratch,
        x: &Self::Activations,
        norm: Option<&Norm<Self::Vector>>,
        w: &Self::Ternary,
        y: &mut Self::Activations,
    );

    /// `out = f(W_gate · q(norm(x))) · (W_up · q(norm(x)))`.
    fn gated(
        &self,
        scratch: &mut Self::Scratch,
        x: &Self::Activations,
        norm: &Norm<Self::Vector>,
        weights: Gated<'_, Self>,
        out: &mut Self::Activations,
    );

    /// Causal attention of every token in `spans` to its own sequence.
    fn attention(
        &self,
        scratch: &mut Self::Scratch,
        q: &Self::Activations,
        kv: &Self::KvLayer,
        spans: &[Span],
        out: &mut Self::Activations,
    );

    /// `out.row(i) = head · norm(x[row])` for each `i` and its `(row, wanted)`, with what is wanted at least.
    fn logits(
        &self,
        scratch: &mut Self::Scratch,
        x: &Self::Activations,
        rows: &[(usize, Wanted)],
        norm: &Norm<Self::Vector>,
        head: &Self::Head,
        out: &mut Logits,
    );
}

/// The three matrices of attention, and where its tokens belong.
pub struct Projection<'a, B: Backend> {
    /// `[heads · head_dim, hidden_size]`.
    pub q: &'a B::Ternary,
    /// `[kv_heads · head_dim, hidden_size]`.
    pub k: &'a B::Ternary,
    /// `[kv_heads · head_dim, hidden_size]`.
    pub v: &'a B::Ternary,
    /// The angles of each token's position.
    pub rope: &'a RopeTable,
    /// Each token's place in the cache.
    pub slots: &'a [u32],
}

/// The two matrices of a gated feed-forward layer and the function between them.
pub struct Gated<'a, B: Backend> {
    /// `[intermediate_size, hidden_size]`.
    pub gate: &'a B::Ternary,
    /// `[intermediate_size, hidden_size]`.
    pub up: &'a B::Ternary,
    /// Applied to the gate.
    pub activation: Activation,
}
