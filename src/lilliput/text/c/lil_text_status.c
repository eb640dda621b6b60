/* What the status codes say. */
#include "lil_text.h"

typedef struct meaning {
    const char *message;
    const char *record;
} meaning;

static const meaning meanings[LIL_TEXT_STATUS_COUNT] = {
    [LIL_TEXT_OK] = {"no error", 0},
    [LIL_TEXT_NULL_ARGUMENT] = {"an argument is missing", 0},
    [LIL_TEXT_BAD_KIND] = {"an unknown kind of tokenizer", 0},
    [LIL_TEXT_BAD_COUNT] = {"no tokens, too many tokens or merges, or a model of more tokens than there are", 0},
    [LIL_TEXT_BAD_END] = {"a token is empty or reaches beyond the vocabulary's text", "token"},
    [LIL_TEXT_DUPLICATE] = {"a token is there twice", "token"},
    [LIL_TEXT_COLLISIONS] = {"too many tokens or merges have the same hash", "token or merge"},
    [LIL_TEXT_BAD_ID] = {"an id that no token has", "id"},
    [LIL_TEXT_BAD_ADDED] = {"an added token is empty or out of order", "added token"},
    [LIL_TEXT_BAD_MERGE] = {"a merge has an id that is out of range, gives no token, or is there twice", "merge"},
    [LIL_TEXT_MISSING_BYTE] = {"no token stands for a byte", "byte"},
    [LIL_TEXT_TABLE_SMALL] = {"the table has too few bytes", 0},
    [LIL_TEXT_MISALIGNED] = {"memory is misaligned", 0},
    [LIL_TEXT_TOO_LONG] = {"a text has more than 2^26 bytes", 0},
    [LIL_TEXT_FEW_TOKENS] = {"no room for the tokens that surround every text", 0},
    [LIL_TEXT_OUTPUT_SMALL] = {"too little room for ids", 0},
    [LIL_TEXT_WORK_SMALL] = {"too little work memory", 0},
};

const char *lil_text_status_message(lil_text_status status) {
    return (unsigned)status < LIL_TEXT_STATUS_COUNT ? meanings[status].message : "an unknown status";
}

const char *lil_text_status_record(lil_text_status status) {
    return (unsigned)status < LIL_TEXT_STATUS_COUNT ? meanings[status].record : 0;
}
