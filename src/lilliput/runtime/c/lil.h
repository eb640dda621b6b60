/* Lilliput runtime: opens and runs one `model.lil`. This is the only public header.
 *
 * C11 and libc only. The core allocates nothing, keeps no state of its own and never aborts: the caller owns all
 * memory, and every failure is a status code. The file and what each op computes: docs/format.md.
 *
 *     lil_model model;
 *     lil_status status = lil_open(&model, file, file_bytes);         once; `file` stays where it is, unchanged
 *     size_t bytes = lil_arena_bytes(&model, 1);
 *     lil_context context = {.arena = aligned_alloc(LIL_ALIGNMENT, bytes), .arena_bytes = bytes};
 *     status = lil_run(&model, &context, pixels, lil_input_bytes(&model), logits, lil_output_bytes(&model));
 *
 * Threads: one model, many contexts. After lil_open a model is never written again, so any number of threads may run
 * it at once, each with a context, an input and an output of its own. One run may also be shared among threads: see
 * lil_team. */
#ifndef LIL_H
#define LIL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Alignment in bytes that lil_run asks of the arena. */
#define LIL_ALIGNMENT 64

/* Why a call was refused. What a file has wrong is named by the first MUST of docs/format.md that it breaks. For the
 * codes marked [section] and so on, lil_model.where holds the number of the one at fault: a section's kind, 1 to 7,
 * or a record's number, from 0. */
typedef enum lil_status {
    LIL_OK = 0,
    /* Refused by lil_open. */
    LIL_NULL_ARGUMENT,     /* a pointer is NULL (also lil_run) */
    LIL_FOREIGN,           /* no magic: not such a file at all */
    LIL_TRUNCATED,         /* shorter than header and section table, or than its header says */
    LIL_TRAILING,          /* longer than its header says */
    LIL_BAD_VERSION,       /* another version of the format, or not the lowest that can hold its ops */
    LIL_BAD_CHECKSUM,      /* altered: the CRC-32 differs */
    LIL_BAD_HEADER,        /* a field that must be 0, another number of sections, input or output out of range */
    LIL_BAD_SECTION,       /* [section] kind, count, offset or size; a golden sequence's length or ids */
    LIL_BAD_GAP,           /* [section] a byte before it, between its tensors, or before the golden outputs, is not 0 */
    LIL_BAD_BUFFER,        /* [buffer] dtype, rows, cols, size, offset, or a reserved field */
    LIL_BAD_ARENA,         /* arena bytes differ from what the buffers need, or are too many */
    LIL_BAD_VOCABULARY,    /* sizes, ends or merges; or an image program has one */
    LIL_BAD_TENSOR,        /* [tensor] format, layout, rows, cols, size, offset, or a reserved field */
    LIL_BAD_CONSTANT,      /* [tensor] a value is not finite, or a scale is negative */
    LIL_BAD_CODE,          /* [tensor] a code that no level has, or padding that is not code 0 */
    LIL_BAD_INDEX,         /* [tensor] its index of stored blocks is not in order, or one of them is all zero */
    LIL_BAD_OP_KIND,       /* [op] unknown */
    LIL_BAD_OP_SLOT,       /* [op] an index out of range, or an unused slot that is not 0 */
    LIL_BAD_OP_TYPE,       /* [op] dtype of a buffer, or format or layout of a tensor, is not the kind's */
    LIL_BAD_OP_SHAPE,      /* [op] shapes do not fit the kind, or each other, or the attributes */
    LIL_BAD_OP_ATTRIBUTE,  /* [op] an attribute out of range */
    LIL_BAD_OP_ORDER,      /* [op] reads a buffer before it is written, or writes one that is written already */
    LIL_BAD_OP_SCRATCH,    /* [op] reads a scratch buffer */
    LIL_BAD_OP_OVERLAP,    /* [op] writes over an input, another output, or a buffer that is still needed */
    LIL_UNWRITTEN,         /* [buffer] written by no op */
    /* Refused by lil_run. */
    LIL_ARENA_SMALL,       /* fewer than lil_arena_bytes */
    LIL_ARENA_MISALIGNED,  /* not at a multiple of LIL_ALIGNMENT */
    LIL_INPUT_SIZE,        /* not exactly lil_input_bytes */
    LIL_WRONG_PROGRAM,     /* lil_run of a sequence program, or lil_run_sequences of an image program */
    LIL_SEQUENCE_LENGTH,   /* no sequence, an empty one, one longer than max_tokens, or too many tokens together */
    LIL_UNKNOWN_TOKEN,     /* a token id that is not below num_token_ids */
    LIL_OUTPUT_SIZE,       /* not exactly lil_output_bytes */
    LIL_OUTPUT_MISALIGNED, /* not at a multiple of 4 */
    LIL_MEMORY_OVERLAP,    /* arena or output overlap each other, the input or the file */
    LIL_BAD_TEAM,          /* a team of 0 threads, or without a function to run them */
    /* Refused by lil_use_isa. */
    LIL_ISA_MISSING,       /* no such instruction set, not built for this target, or the processor has it not */
    LIL_STATUS_COUNT
} lil_status;

/* The instruction sets that there are kernels for. Each gives the same bits. */
typedef enum lil_isa {
    LIL_SCALAR = 0, /* plain C, everywhere */
    LIL_AVX2,       /* x86-64 */
    LIL_AVX512,     /* x86-64: AVX-512 F, BW, DQ, VL, VBMI and VNNI, and BMI2 */
    LIL_AMX,        /* x86-64: the same, and AMX with int8 */
    LIL_NEON,       /* aarch64 */
    LIL_NEONDOT,    /* aarch64 with the dot product instructions (Armv8.2 and later) */
    LIL_ISA_COUNT
} lil_isa;

/* An opened model: pointers into the caller's file, which it does not own. Set by lil_open; read it as you like, and
 * never write it. After a refusal only `where` means something. */
typedef struct lil_model {
    const uint8_t *file;     /* file_bytes of them */
    size_t file_bytes;
    size_t arena_bytes;      /* a multiple of LIL_ALIGNMENT; 0 is possible. Of a sequence program: a token, of 4 */
    size_t scratch_bytes;    /* the largest scratch of one op; the same */
    const uint8_t *buffers;  /* packed records, as in the file */
    const uint8_t *tensors;
    const uint8_t *ops;
    const uint8_t *constants;
    const uint8_t *metadata; /* metadata_bytes of UTF-8 JSON, not verified here, not ended by a NUL */
    size_t metadata_bytes;
    const uint8_t *golden_inputs;  /* num_golden x lil_input_bytes, one after another; of a sequence program
                                    * little-endian u32: num_golden lengths, then the token ids of all */
    size_t golden_input_bytes;     /* in all */
    const uint8_t *golden_outputs; /* num_golden x lil_output_bytes, little-endian binary32, maybe misaligned */
    uint32_t num_buffers;
    uint32_t num_tensors;
    uint32_t num_ops;
    uint32_t num_golden;
    const uint8_t *vocabulary; /* of a sequence program: vocabulary_bytes, see docs/format.md; verified */
    size_t vocabulary_bytes;
    uint32_t vocabulary_tokens; /* 0: there is none */
    uint32_t version;        /* of the file's format */
    uint32_t max_tokens;     /* 0: an image program; else the longest sequence of a sequence program */
    uint32_t num_token_ids;  /* token ids are below it */
    uint32_t input;       /* number of the input buffer */
    uint32_t output;      /* number of the output buffer */
    uint32_t input_rows;  /* pixels: height * width; 0 for a sequence program */
    uint32_t input_cols;  /* channels, 1 byte each; 1 for a sequence program: a token id, of 4 bytes */
    uint32_t output_cols; /* float32 outputs, one row of them */
    uint32_t where;       /* after a refusal: see lil_status; otherwise 0 */
    lil_isa isa;          /* whose kernels lil_run takes: the best of this machine, unless lil_use_isa has changed it */
} lil_model;

/* Verify the whole of a file and describe it in `model`.
 *
 * model       out; the caller's; may be copied, and holds nothing to free.
 * file        the file's bytes, at any alignment (64 is fastest). Borrowed: they MUST stay where they are, unchanged,
 *             as long as the model is used. Hostile bytes are refused or harmless; bytes that change later are not.
 * file_bytes  the file's exact size.
 * Returns LIL_OK, or why the file is refused. Thread-safe. Takes about 2 KB of stack. The time grows with the file's
 * bytes and, where very many buffers live long, with the number of ops times that of buffers. */
lil_status lil_open(lil_model *model, const void *file, size_t file_bytes);

/* "scalar", "avx2", "avx512", "amx", "neon" or "neondot"; NULL for a value outside the enum. */
const char *lil_isa_name(lil_isa isa);

/* Whether this build has kernels for `isa` and this machine's processor (and system) can run them. On Linux with AMX
 * this, like lil_open, asks the system to let the process have AMX's registers for good. */
bool lil_isa_available(lil_isa isa);

/* Take the kernels of `isa` for this model from now on. Not while the model runs.
 * Returns LIL_OK, or LIL_ISA_MISSING, and nothing has changed. */
lil_status lil_use_isa(lil_model *model, lil_isa isa);

/* Threads that share one lil_run. The caller makes them; the core only asks for them to be run.
 *
 * num_threads  at least 1.
 * run          calls task(argument, t) once for each t in 0..num_threads-1, together, and returns when all have
 *              returned. The calling thread may be one of them.
 * threads      handed to `run` as it is.
 * min_elements ops whose first input and output have fewer elements together are left to the calling thread: for them
 *              the threads' meeting costs more than the work. 0: all are shared. */
typedef struct lil_team {
    size_t num_threads;
    void (*run)(void *threads, void (*task)(void *argument, size_t thread), void *argument);
    void *threads;
    size_t min_elements;
} lil_team;

/* What one run works with. At most one lil_run at a time uses a context.
 *
 * arena        arena_bytes >= lil_arena_bytes of work memory at a multiple of LIL_ALIGNMENT. Its content before the
 *              call does not matter and after it means nothing. Anything, NULL too, where 0 bytes are needed.
 * team         NULL: the calling thread alone. The result does not depend on it.
 * after_op     NULL, or called by lil_run's thread after each op with its number, for a profile.
 * observer     handed to `after_op` as it is. */
typedef struct lil_context {
    void *arena;
    size_t arena_bytes;
    const lil_team *team;
    void (*after_op)(void *observer, uint32_t op);
    void *observer;
} lil_context;

/* Bytes of arena that one lil_run, or lil_run_sequences of one sequence of max_tokens, needs with a team of `num_threads`
 * (0 and 1: alone), and of an image program's input, and of the output of one example. `model` MUST come from a
 * successful lil_open. SIZE_MAX where so many threads' scratch cannot be addressed. Thread-safe. */
size_t lil_arena_bytes(const lil_model *model, size_t num_threads);

/* The same of lil_run_sequences for `num_tokens` tokens in all its sequences: it grows with them in steps of 16. */
size_t lil_sequence_arena_bytes(const lil_model *model, size_t num_threads, size_t num_tokens);
size_t lil_input_bytes(const lil_model *model);
size_t lil_output_bytes(const lil_model *model);

/* Run one example of an image program.
 *
 * model    from a successful lil_open.
 * context  memory and threads; see lil_context.
 * input    exactly lil_input_bytes: uint8 pixels 0..255 [input_rows, input_cols], row-major, at any alignment; it is
 *          not written.
 * output   exactly lil_output_bytes: receives float32 [output_cols], at a multiple of 4. Untouched after a refusal.
 * Arena and output overlap neither each other nor the input nor the file.
 * Returns LIL_OK or one of lil_run's codes. Thread-safe for different contexts and outputs. Allocates nothing, waits
 * for nothing but the team. Takes up to 96 KB of each thread's stack (scalar kernels: 4 KB).
 *
 * The same bits on every machine, with every instruction set and any number of threads: the floating-point environment
 * (rounding, flush to zero) of each thread is set to the default for the time of the call and restored. */
lil_status lil_run(const lil_model *model, const lil_context *context, const void *input, size_t input_bytes,
                   float *output, size_t output_bytes);

/* Run a sequence program on sequences of token ids, one behind the other without padding: work and memory follow the
 * tokens that there are. Each result is what it would be alone, bit for bit.
 *
 * model          from a successful lil_open.
 * context        as for lil_run; an arena of lil_sequence_arena_bytes of the sum of all lengths.
 * tokens         the ids of the first sequence, then those of the second, and so on: each below num_token_ids. Not
 *                written. They MUST NOT change during the call: they are checked first, and read again.
 * lengths        the length of each sequence, 1 to max_tokens, num_sequences of them, at least one; together at most 2^24.
 *                They MUST NOT change either.
 * output         output_bytes, exactly num_sequences * lil_output_bytes: receives float32 [num_sequences, output_cols].
 * Everything else as for lil_run. */
lil_status lil_run_sequences(const lil_model *model, const lil_context *context, const uint32_t *tokens,
                             const uint32_t *lengths, size_t num_sequences, float *output, size_t output_bytes);

/* One English line for a status, without a final stop; never NULL, static, also for values outside the enum. */
const char *lil_status_message(lil_status status);

/* What lil_model.where counts for a status: "section", "buffer", "tensor" or "op"; NULL where it counts nothing. */
const char *lil_status_record(lil_status status);

#ifdef __cplusplus
}
#endif
#endif
