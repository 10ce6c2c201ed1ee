/* Continue a prompt with a model that miaotui compiled to native code: token ids in, token ids out. No
 * Python, no ONNX Runtime, no other library is needed where it runs.
 *
 *   miaotui compile model.gguf -o model.miaotui --backend native
 *   M=model.miaotui/variants/cpu-native
 *   cc -O2 -I$M/include examples/native_chat.c -L$M -lmodel -Wl,-rpath,$PWD/$M -o native_chat
 *   echo "504 3575 282 4649 314" | ./native_chat $M/model.weights 20
 *
 * Every line of the standard input is a turn: its ids are appended, and up to so many tokens are written
 * behind them. An answer ends early behind an end token, if some were named as further arguments. Text
 * becomes ids, and ids text, by the tokenizer in the same folder:
 *
 *   python -c "import sys, tokenizers
 *   load = tokenizers.Tokenizer.from_file('model.miaotui/tokenizer/tokenizer.json')
 *   print(*load.encode(sys.argv[1]).ids)" "The capital of France is"
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"

static int complain(void)
{
    fprintf(stderr, "native_chat: %s\n", miaotui_last_error());
    return 1;
}

/* Ids of a line, at most `room`; -1 if there is anything else in it. */
static int64_t read_ids(char *line, int64_t *ids, int64_t room)
{
    int64_t count = 0;
    for (char *word = strtok(line, " \t\r\n"); word && count < room; word = strtok(NULL, " \t\r\n")) {
        char *end;
        ids[count++] = strtoll(word, &end, 10);
        if (*end)
            return -1;
    }
    return count;
}

static int is_end(int64_t token, int argc, char **argv)
{
    for (int i = 3; i < argc; i++)
        if (strtoll(argv[i], NULL, 10) == token)
            return 1;
    return 0;
}

/* Greedy: the likeliest token every time. Whoever wants to sample finds the logits at miaotui_logits(state,
 * 0). */
static int answer(miaotui_state *state, int64_t most, int argc, char **argv)
{
    int64_t token = miaotui_next(state, 0);
    for (int64_t i = 0; i < most && !is_end(token, argc, argv); i++) {
        printf("%lld ", (long long)token);
        fflush(stdout);
        int error = miaotui_decode(state, &token, &token);
        if (error == MIAOTUI_FULL)
            break;
        if (error)
            return complain();
    }
    printf("\n");
    return 0;
}

int main(int argc, char **argv)
{
    static char line[1 << 20];
    static int64_t ids[1 << 17];
    if (argc < 3) {
        fprintf(stderr, "usage: native_chat MODEL.WEIGHTS TOKENS [END_TOKEN ...] < lines of token ids\n");
        return 2;
    }
    int64_t context = miaotui_context(), failed = 0;
    miaotui_model *model = miaotui_open(argv[1], 0);
    miaotui_state *state =
        model ? miaotui_state_new(model, 1, context && context < 4096 ? context : 4096) : NULL;
    if (!state)
        failed = complain();
    while (!failed && fgets(line, sizeof line, stdin)) {
        int64_t count = read_ids(line, ids, sizeof ids / sizeof *ids);
        if (count < 0) {
            fprintf(stderr, "native_chat: a line of token ids, please\n");
            failed = 1;
        } else if (count > 0) {
            failed = miaotui_prefill(state, 0, ids, count) ? complain()
                                                           : answer(state, atoll(argv[2]), argc, argv);
        }
    }
    miaotui_state_free(state);
    miaotui_close(model);
    return (int)failed;
}
