/* The words for each status. */
#include "lil.h"

#define LIL_ELEMENTS(table) ((int)(sizeof(table) / sizeof(table)[0]))

static const char *const messages[LIL_STATUS_COUNT] = {
    [LIL_OK] = "no error",
    [LIL_NULL_ARGUMENT] = "a pointer is NULL",
    [LIL_FOREIGN] = "not a Lilliput model file: the first bytes are not its signature",
    [LIL_TRUNCATED] = "truncated: shorter than its header says",
    [LIL_TRAILING] = "bytes follow the end that its header gives",
    [LIL_BAD_VERSION] = "another version of the format; this runtime reads versions 1 and 2, and the lowest that holds the ops",
    [LIL_BAD_CHECKSUM] = "altered: the checksum does not match",
    [LIL_BAD_HEADER] = "a header field is not what the format allows",
    [LIL_BAD_SECTION] = "a section's kind, count, place or size is wrong",
    [LIL_BAD_VOCABULARY] = "the vocabulary's sizes, ends or merges do not fit each other",
    [LIL_BAD_GAP] = "a gap before or within a section is not all zero bytes",
    [LIL_BAD_BUFFER] = "a buffer's type, shape, size or place is not allowed",
    [LIL_BAD_ARENA] = "the arena's size is not what the buffers need, or above 2^31 - 1 bytes",
    [LIL_BAD_TENSOR] = "a tensor's format, layout, shape, size or place is not allowed",
    [LIL_BAD_CONSTANT] = "a tensor holds a value that is not finite, or a scale below 0",
    [LIL_BAD_CODE] = "a tensor holds a code that has no level, or padding that is not code 0",
    [LIL_BAD_INDEX] = "a tensor's index of stored blocks is not in order, or one of them is all zero",
    [LIL_BAD_OP_KIND] = "an op of unknown kind, or of the other kind of program",
    [LIL_BAD_OP_SLOT] = "an op names a record that is not there, or fills a slot that its kind does not have",
    [LIL_BAD_OP_TYPE] = "an op's buffer or tensor has not the type that its kind takes",
    [LIL_BAD_OP_SHAPE] = "an op's shapes do not fit its kind",
    [LIL_BAD_OP_ATTRIBUTE] = "an op's attribute is out of range",
    [LIL_BAD_OP_ORDER] = "an op reads a buffer before it is written, or writes one that is written already",
    [LIL_BAD_OP_SCRATCH] = "an op reads scratch, which holds nothing defined",
    [LIL_BAD_OP_OVERLAP] = "an op writes over a buffer that is still needed",
    [LIL_UNWRITTEN] = "a buffer that no op writes",
    [LIL_ARENA_SMALL] = "the arena is smaller than the model needs",
    [LIL_ARENA_MISALIGNED] = "the arena does not start at a multiple of 64 bytes",
    [LIL_INPUT_SIZE] = "the input has not the size that the model takes",
    [LIL_WRONG_PROGRAM] = "an image program runs on images, a sequence program on sequences of tokens",
    [LIL_SEQUENCE_LENGTH] = "a sequence is empty or longer than the model takes, or there is none, or too many tokens",
    [LIL_UNKNOWN_TOKEN] = "a token id that the model does not know",
    [LIL_OUTPUT_SIZE] = "the output has not the size that the model gives",
    [LIL_OUTPUT_MISALIGNED] = "the output does not start at a multiple of 4 bytes",
    [LIL_MEMORY_OVERLAP] = "arena, output, input and file share memory",
    [LIL_BAD_TEAM] = "a team needs at least one thread and a function that runs them",
    [LIL_ISA_MISSING] = "this instruction set is not one that this build and this processor have",
};

static const char *const records[] = {
    [LIL_BAD_SECTION] = "section",    [LIL_BAD_GAP] = "section",      [LIL_BAD_BUFFER] = "buffer",
    [LIL_BAD_TENSOR] = "tensor",      [LIL_BAD_CONSTANT] = "tensor",  [LIL_BAD_CODE] = "tensor",
    [LIL_BAD_INDEX] = "tensor",       [LIL_BAD_OP_KIND] = "op",       [LIL_BAD_OP_SLOT] = "op",
    [LIL_BAD_OP_TYPE] = "op",         [LIL_BAD_OP_SHAPE] = "op",      [LIL_BAD_OP_ATTRIBUTE] = "op",
    [LIL_BAD_OP_ORDER] = "op",        [LIL_BAD_OP_SCRATCH] = "op",    [LIL_BAD_OP_OVERLAP] = "op",
    [LIL_UNWRITTEN] = "buffer",
};

const char *lil_status_message(lil_status status) {
    const int index = (int)status;
    return index >= 0 && index < LIL_ELEMENTS(messages) ? messages[index] : "no such status";
}

const char *lil_status_record(lil_status status) {
    const int index = (int)status;
    return index >= 0 && index < LIL_ELEMENTS(records) ? records[index] : NULL;
}
