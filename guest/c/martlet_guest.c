/* The calls, their JSON and base64, and one connection for each call: nothing gets out of step, and processes and
 * threads share none. C99 and Linux, no dependencies. */

#define _POSIX_C_SOURCE 200809L

#include "martlet_guest.h"

#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum {
    LINE_BYTES = 60 * 1024,
    DEPTH_MOST = 16,       /* of an answer's values in each other */
    PROCESSES_MOST = 4096, /* that are started in a clone, whatever the agent says */
    TRIES_MOST = 32,       /* of a call that was interrupted: for a minute, in which a daemon is long started anew */
    PAUSE_FIRST_MS = 50,
    PAUSE_LONGEST_MS = 2000
};

/* This process's number, once it is known to be one of a clone: a clone cannot fork again. */
static unsigned own_id;

/* ---- failures ---- */

static __thread enum martlet_error_kind error_kind;
static __thread char error_words[512];

static const char *const KIND_NAMES[] = {"no_error",    "denied", "not_found", "invalid", "state",   "busy",
                                         "interrupted", "failed", "absent",    "lost",    "protocol"};

const char *martlet_error(void) { return error_words; }

enum martlet_error_kind martlet_error_kind(void) { return error_kind; }

const char *martlet_error_kind_name(enum martlet_error_kind kind) {
    return (unsigned)kind <= MARTLET_PROTOCOL ? KIND_NAMES[kind] : "failed";
}

static int fail(enum martlet_error_kind kind, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    error_kind = kind;
    vsnprintf(error_words, sizeof error_words, format, arguments);
    va_end(arguments);
    return -1;
}

static int unexpected(void) { return fail(MARTLET_PROTOCOL, "the agent's answer makes no sense here"); }

static int no_memory(void) { return fail(MARTLET_FAILED, "there is no memory left for the answer"); }

/* ---- base64 ---- */

static const char DIGITS[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

static size_t base64_length(size_t length) { return (length + 2) / 3 * 4; }

static void base64_encode(const unsigned char *data, size_t length, char *text) {
    for (size_t at = 0; at < length; at += 3) {
        size_t left = length - at;
        unsigned long group = (unsigned long)data[at] << 16;
        if (left > 1)
            group |= (unsigned long)data[at + 1] << 8;
        if (left > 2)
            group |= data[at + 2];
        *text++ = DIGITS[group >> 18 & 63];
        *text++ = DIGITS[group >> 12 & 63];
        *text++ = left > 1 ? DIGITS[group >> 6 & 63] : '=';
        *text++ = left > 2 ? DIGITS[group & 63] : '=';
    }
}

/* Into what has room for `length / 4 * 3`. How many bytes, or -1. */
static long base64_decode(const char *text, size_t length, char *data) {
    long count = 0;
    if (length % 4 != 0)
        return -1;
    for (size_t at = 0; at < length; at += 4) {
        int pad = at + 4 < length || text[at + 3] != '=' ? 0 : text[at + 2] != '=' ? 1 : 2;
        unsigned long group = 0;
        for (int digit = 0; digit < 4; digit++) {
            char c = text[at + digit];
            const char *found = c == '\0' ? NULL : strchr(DIGITS, c);
            if (digit >= 4 - pad)
                group <<= 6;
            else if (found != NULL)
                group = group << 6 | (unsigned long)(found - DIGITS);
            else
                return -1;
        }
        for (int byte = 0; byte < 3 - pad; byte++)
            data[count++] = (char)(group >> (16 - 8 * byte) & 255);
    }
    return count;
}

/* ---- JSON that comes: looked at where it lies, once the whole line has been found to be sound ---- */

struct span {
    const char *at, *end;
};

static const char *skip_space(const char *at, const char *end) {
    while (at < end && (*at == ' ' || *at == '\t' || *at == '\r' || *at == '\n'))
        at++;
    return at;
}

static int hex(char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* The end of a string that begins at its quote, or NULL. */
static const char *skip_string(const char *at, const char *end) {
    for (at++; at < end && *at != '"'; at++) {
        if ((unsigned char)*at < 0x20)
            return NULL;
        if (*at != '\\')
            continue;
        if (++at == end || strchr("\"\\/bfnrtu", *at) == NULL || *at == '\0')
            return NULL;
        if (*at == 'u') {
            for (int digit = 0; digit < 4; digit++)
                if (++at == end || hex(*at) < 0)
                    return NULL;
        }
    }
    return at < end ? at + 1 : NULL;
}

/* The end of a value that begins here, or NULL when it is none. */
static const char *skip_value(const char *at, const char *end, int depth) {
    if (at == end || depth > DEPTH_MOST)
        return NULL;
    if (*at == '"')
        return skip_string(at, end);
    if (*at == '{' || *at == '[') {
        char open = *at, close = open == '{' ? '}' : ']';
        at = skip_space(at + 1, end);
        if (at < end && *at == close)
            return at + 1;
        for (;;) {
            if (open == '{') {
                if (at == end || *at != '"' || (at = skip_string(at, end)) == NULL)
                    return NULL;
                at = skip_space(at, end);
                if (at == end || *at != ':')
                    return NULL;
                at = skip_space(at + 1, end);
            }
            if ((at = skip_value(at, end, depth + 1)) == NULL)
                return NULL;
            at = skip_space(at, end);
            if (at == end || (*at != ',' && *at != close))
                return NULL;
            if (*at == close)
                return at + 1;
            at = skip_space(at + 1, end);
        }
    }
    /* A number or a word; whoever wants one looks closer. */
    const char *start = at;
    while (at < end && ((*at >= '0' && *at <= '9') || (*at >= 'a' && *at <= 'z') || *at == '-' || *at == '+' ||
                        *at == '.' || *at == 'E'))
        at++;
    return at > start ? at : NULL;
}

static int is(struct span value, const char *text) {
    size_t length = strlen(text);
    return (size_t)(value.end - value.at) == length && memcmp(value.at, text, length) == 0;
}

/* The next member of an object or element of an array; `at` is where the last one ended, first the container's start.
 * Of a sound value only. */
static int next_value(struct span container, const char **at, struct span *key, struct span *value) {
    *at = skip_space(*at + 1, container.end);
    if (*at >= container.end - 1)
        return 0;
    if (*container.at == '{') {
        key->at = *at;
        key->end = skip_string(*at, container.end);
        *at = skip_space(skip_space(key->end, container.end) + 1, container.end);
    }
    value->at = *at;
    value->end = skip_value(*at, container.end, 0);
    *at = skip_space(value->end, container.end); /* its comma, or the container's last byte */
    return 1;
}

/* A member of an object by its name in quotes. */
static int member(struct span object, const char *name, struct span *value) {
    struct span key = object;
    const char *at = object.at;
    if (at == object.end || *at != '{')
        return 0;
    while (next_value(object, &at, &key, value))
        if (is(key, name))
            return 1;
    return 0;
}

static int get_integer(struct span object, const char *name, long long least, long long most, long long *number) {
    struct span value;
    char digits[24], *end;
    if (!member(object, name, &value) || (size_t)(value.end - value.at) >= sizeof digits)
        return -1;
    memcpy(digits, value.at, (size_t)(value.end - value.at));
    digits[value.end - value.at] = '\0';
    errno = 0;
    *number = strtoll(digits, &end, 10);
    return *end != '\0' || end == digits || errno != 0 || *number < least || *number > most ? -1 : 0;
}

static int get_unsigned(struct span object, const char *name, unsigned *number) {
    long long wide;
    if (get_integer(object, name, 0, INT_MAX, &wide) < 0)
        return -1;
    *number = (unsigned)wide;
    return 0;
}

static size_t put_utf8(unsigned long code, char *text) {
    if (code < 0x80) {
        text[0] = (char)code;
        return 1;
    }
    int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    for (int at = more; at > 0; at--, code >>= 6)
        text[at] = (char)(0x80 | (code & 0x3f));
    text[0] = (char)((0xff00 >> (more + 1) & 0xff) | code);
    return (size_t)more + 1;
}

static unsigned long hex4(const char *at) {
    return (unsigned long)(hex(at[0]) << 12 | hex(at[1]) << 8 | hex(at[2]) << 4 | hex(at[3]));
}

/* A sound string's text, which is no longer than the string, and a 0. -1 when it is none or has a 0 in it. */
static int decode_string(struct span value, char *text) {
    if (value.at == value.end || *value.at != '"')
        return -1;
    const char *at = value.at + 1, *end = value.end - 1;
    while (at < end) {
        if (*at != '\\') {
            *text++ = *at++;
            continue;
        }
        at++;
        const char *from = "\"\\/bfnrt", *to = "\"\\/\b\f\n\r\t", *found = strchr(from, *at);
        if (found != NULL) {
            *text++ = to[found - from];
            at++;
            continue;
        }
        unsigned long code = hex4(at + 1);
        at += 5;
        if (code >= 0xd800 && code < 0xdc00 && end - at >= 6 && at[0] == '\\' && at[1] == 'u') {
            unsigned long low = hex4(at + 2);
            if (low < 0xdc00 || low > 0xdfff)
                return -1;
            code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
            at += 6;
        }
        if (code == 0 || (code >= 0xd800 && code <= 0xdfff))
            return -1;
        text += put_utf8(code, text);
    }
    *text = '\0';
    return 0;
}

/* A new string, or NULL with the failure said. */
static char *string_of(struct span value) {
    char *text = malloc((size_t)(value.end - value.at) + 1);
    if (text == NULL) {
        no_memory();
        return NULL;
    }
    if (decode_string(value, text) < 0) {
        free(text);
        unexpected();
        return NULL;
    }
    return text;
}

static int get_name(struct span object, const char *member_name, char name[MARTLET_NAME_BYTES]) {
    struct span value;
    if (!member(object, member_name, &value) || value.end - value.at > MARTLET_NAME_BYTES)
        return unexpected();
    return decode_string(value, name) < 0 ? unexpected() : 0;
}

/* ---- calls ---- */

/* The one that is made and its answer: `ok` is what was answered, in `line`. */
struct call {
    char line[LINE_BYTES];
    size_t length;
    struct span ok;
};

static void put(struct call *call, const char *text) {
    size_t length = strlen(text);
    if (length >= LINE_BYTES - call->length) {
        call->length = LINE_BYTES - 1; /* too long, and full: found when it is made */
        return;
    }
    memcpy(call->line + call->length, text, length);
    call->length += length;
}

static void put_string(struct call *call, const char *text) {
    char piece[8];
    put(call, "\"");
    for (; *text != '\0'; text++) {
        unsigned char c = (unsigned char)*text;
        snprintf(piece, sizeof piece, c == '"' || c == '\\' ? "\\%c" : c < 0x20 ? "\\u%04x" : "%c", c);
        put(call, piece);
    }
    put(call, "\"");
}

static void put_number(struct call *call, long long number) {
    char digits[24];
    snprintf(digits, sizeof digits, "%lld", number);
    put(call, digits);
}

static struct call *new_call(const char *name) {
    struct call *call = malloc(sizeof *call);
    if (call == NULL) {
        no_memory();
        return NULL;
    }
    call->length = 0;
    put(call, "{\"call\":");
    put_string(call, name);
    return call;
}

static struct call *new_call_of_ticket(const char *name, const char *ticket) {
    struct call *call = new_call(name);
    if (call != NULL) {
        put(call, ",\"ticket\":");
        put_string(call, ticket);
    }
    return call;
}

/* A socket at the agent. MARTLET_GUEST_SOCKET names another: @NAME in the abstract namespace, or a path. For tests. */
static int connect_agent(void) {
    const char *name = getenv("MARTLET_GUEST_SOCKET");
    struct sockaddr_un address;
    memset(&address, 0, sizeof address);
    address.sun_family = AF_UNIX;
    if (name == NULL)
        name = "@martlet.guest";
    size_t length = strlen(name);
    if (length >= sizeof address.sun_path)
        return fail(MARTLET_ABSENT, "the socket's name is too long: %s", name);
    memcpy(address.sun_path, name, length);
    if (name[0] == '@')
        address.sun_path[0] = '\0';
    else
        length++;
    int agent = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (agent < 0)
        return fail(MARTLET_FAILED, "cannot open a socket: %s", strerror(errno));
    socklen_t address_length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length);
    if (connect(agent, (struct sockaddr *)&address, address_length) < 0) {
        fail(MARTLET_ABSENT, "no agent of Martlet listens at %s (%s); is this a guest of Martlet?", name, strerror(errno));
        close(agent);
        return -1;
    }
    return agent;
}

static int lost(const char *why) { return fail(MARTLET_LOST, "the connection to the agent was lost: %s", why); }

/* Sends the call's line and has the answer's line in its place. */
static int exchange(int agent, struct call *call) {
    for (size_t sent = 0; sent < call->length;) {
        ssize_t count = send(agent, call->line + sent, call->length - sent, MSG_NOSIGNAL);
        if (count < 0 && errno != EINTR)
            return lost(strerror(errno));
        sent += count > 0 ? (size_t)count : 0;
    }
    call->length = 0;
    for (;;) {
        ssize_t count = recv(agent, call->line + call->length, LINE_BYTES - call->length, 0);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0)
            return lost(strerror(errno));
        if (count == 0)
            return lost("it ended before the answer");
        char *start = call->line + call->length, *end = memchr(start, '\n', (size_t)count);
        call->length += (size_t)count;
        if (end != NULL && end + 1 == call->line + call->length)
            return 0;
        if (end != NULL)
            return fail(MARTLET_PROTOCOL, "the agent's answer has more than a line");
        if (call->length == LINE_BYTES)
            return fail(MARTLET_PROTOCOL, "the agent's answer has more than %d bytes", LINE_BYTES);
    }
}

static int refused(struct span error) {
    struct span kind, message;
    if (!member(error, "\"kind\"", &kind) || *kind.at != '"' || !member(error, "\"message\"", &message))
        return unexpected();
    char *words = string_of(message), *name = string_of(kind);
    if (words != NULL && name != NULL) {
        int of = MARTLET_DENIED;
        while (of < MARTLET_FAILED && strcmp(name, KIND_NAMES[of]) != 0)
            of++;
        fail((enum martlet_error_kind)of, "%s", words);
    }
    free(words);
    free(name);
    return -1;
}

/* Makes the call, whose line lacks its end; afterwards it holds the answer, or is to be freed all the same. */
static int make(struct call *call) {
    struct span reply, error;
    put(call, "}\n");
    if (call->length >= LINE_BYTES - 1)
        return fail(MARTLET_INVALID, "the call has more than %d bytes", LINE_BYTES - 2);
    int agent = connect_agent();
    if (agent < 0)
        return -1;
    int done = exchange(agent, call);
    close(agent);
    if (done < 0)
        return -1;
    reply.end = call->line + call->length;
    reply.at = skip_space(call->line, reply.end);
    const char *end = skip_value(reply.at, reply.end, 0);
    if (end == NULL || skip_space(end, reply.end) != reply.end)
        return fail(MARTLET_PROTOCOL, "the agent's answer is not understood");
    reply.end = end;
    if (member(reply, "\"error\"", &error))
        return refused(error);
    return member(reply, "\"ok\"", &call->ok) && *call->ok.at == '{' ? 0 : unexpected();
}

/* Makes a call that may be repeated, and repeats it when the host's side was lost. */
static int persist(struct call *call) {
    struct timespec pause;
    long pause_ms = PAUSE_FIRST_MS;
    size_t length = call->length;
    char *asked = malloc(length);
    if (asked == NULL)
        return no_memory();
    memcpy(asked, call->line, length);
    int done;
    for (int tries = 0; (done = make(call)) < 0 && tries < TRIES_MOST; tries++) {
        /* An agent that was there and is not is being started anew. */
        if (error_kind != MARTLET_INTERRUPTED && error_kind != MARTLET_LOST && !(error_kind == MARTLET_ABSENT && tries > 0))
            break;
        pause.tv_sec = pause_ms / 1000;
        pause.tv_nsec = pause_ms % 1000 * 1000000;
        nanosleep(&pause, NULL);
        pause_ms = pause_ms * 2 < PAUSE_LONGEST_MS ? pause_ms * 2 : PAUSE_LONGEST_MS;
        memcpy(call->line, asked, length);
        call->length = length;
    }
    free(asked);
    return done;
}

static int answered(const struct call *call, const char *kind) {
    struct span answer;
    return member(call->ok, "\"answer\"", &answer) && is(answer, kind);
}

/* ---- processes that ended ---- */

void martlet_exits_free(struct martlet_exits *exits) {
    for (size_t at = 0; at < exits->count; at++) {
        free(exits->each[at].data);
        free(exits->each[at].problem);
    }
    free(exits->each);
    exits->each = NULL;
    exits->count = 0;
}

/* One more, all of it empty, or NULL. */
static struct martlet_exited *add(struct martlet_exits *exits) {
    struct martlet_exited *each = realloc(exits->each, (exits->count + 1) * sizeof *each);
    if (each == NULL) {
        no_memory();
        return NULL;
    }
    exits->each = each;
    memset(&each[exits->count], 0, sizeof *each);
    return &each[exits->count++];
}

/* A member that is a string, null or not there. */
static int get_problem(struct span object, char **problem) {
    struct span value;
    if (!member(object, "\"problem\"", &value) || is(value, "null"))
        return 0;
    return (*problem = string_of(value)) == NULL ? -1 : 0;
}

static int get_data(struct span object, struct martlet_exited *exited) {
    struct span value;
    if (!member(object, "\"data\"", &value))
        return unexpected();
    char *text = string_of(value);
    if (text == NULL)
        return -1;
    size_t length = strlen(text);
    exited->data = malloc(length / 4 * 3 + 1);
    long count = exited->data == NULL ? -1 : base64_decode(text, length, exited->data);
    free(text);
    if (exited->data == NULL)
        return no_memory();
    if (count < 0 || count > MARTLET_DATA_BYTES)
        return unexpected();
    exited->length = (size_t)count;
    exited->data[count] = '\0';
    return 0;
}

static int get_exited(const struct call *call, struct martlet_exits *exits) {
    struct span status;
    long long number = 0;
    if (!answered(call, "\"exited\""))
        return unexpected();
    struct martlet_exited *exited = add(exits);
    if (exited == NULL)
        return -1;
    exited->exited = member(call->ok, "\"status\"", &status) && !is(status, "null");
    if (get_unsigned(call->ok, "\"id\"", &exited->id) < 0 ||
        (exited->exited && get_integer(call->ok, "\"status\"", INT_MIN, INT_MAX, &number) < 0))
        return unexpected();
    exited->status = (int)number;
    return get_data(call->ok, exited) < 0 || get_problem(call->ok, &exited->problem) < 0 ? -1 : 0;
}

static int get_failed(const struct call *call, struct martlet_exits *failed) {
    struct span list, key, value;
    if (!member(call->ok, "\"failed\"", &list))
        return 0;
    if (*list.at != '[')
        return unexpected();
    for (const char *at = list.at; next_value(list, &at, &key, &value);) {
        struct martlet_exited *one = add(failed);
        if (one == NULL)
            return -1;
        if (*value.at != '{' || get_unsigned(value, "\"id\"", &one->id) < 0)
            return unexpected();
        if (get_problem(value, &one->problem) < 0)
            return -1;
    }
    return 0;
}

/* ---- the interface ---- */

int martlet_request_ticket(unsigned count, int hierarchical, unsigned timeout_s, struct martlet_ticket *ticket) {
    struct call *call = new_call("ticket");
    if (call == NULL)
        return -1;
    put(call, ",\"count\":");
    put_number(call, count);
    put(call, hierarchical ? ",\"hierarchical\":true" : ",\"hierarchical\":false");
    if (timeout_s != 0) {
        put(call, ",\"timeout_s\":");
        put_number(call, timeout_s);
    }
    int done = make(call);
    if (done == 0 && (!answered(call, "\"ticket\"") || get_unsigned(call->ok, "\"granted\"", &ticket->granted) < 0 ||
                      ticket->granted < 1 || ticket->granted > count))
        done = unexpected();
    if (done == 0)
        done = get_name(call->ok, "\"ticket\"", ticket->name);
    free(call);
    return done;
}

static int end_process(unsigned id, int status, const void *data, size_t length) {
    struct call *call = new_call("exit");
    if (call == NULL)
        return -1;
    put(call, ",\"id\":");
    put_number(call, id);
    put(call, ",\"status\":");
    put_number(call, status);
    put(call, ",\"data\":\"");
    base64_encode(data, length, call->line + call->length); /* has room: MARTLET_DATA_BYTES make 43692 */
    call->length += base64_length(length);
    put(call, "\"");
    int done = persist(call);
    if (done == 0 && !answered(call, "\"done\""))
        done = unexpected();
    free(call);
    return done;
}

/* Starts the other processes of a clone. Returns in each of them with its number. */
static int start(unsigned first, unsigned processes) {
    own_id = first;
    for (unsigned id = first + 1; id < first + processes; id++) {
        pid_t pid = fork();
        if (pid == 0) {
            own_id = id;
            return (int)id;
        }
        if (pid < 0) {
            /* Its parent waits for it. If that cannot be told either, the clone's end tells it. */
            const char *words = strerror(errno);
            end_process(id, 1, words, strlen(words));
        }
    }
    return (int)first;
}

/* What was cloned: the first process's number. */
static int cloned(const struct call *call, struct martlet_exits *failed, unsigned *processes) {
    unsigned id;
    if (!answered(call, "\"cloned\"") || get_unsigned(call->ok, "\"id\"", &id) < 0 ||
        get_unsigned(call->ok, "\"processes\"", processes) < 0)
        return unexpected();
    if (id > 0 && (*processes < 1 || *processes > PROCESSES_MOST || id > INT_MAX - *processes))
        return unexpected();
    if (failed != NULL && get_failed(call, failed) < 0) {
        martlet_exits_free(failed);
        return -1;
    }
    return (int)id;
}

static void make_empty(struct martlet_exits *exits) {
    if (exits != NULL)
        memset(exits, 0, sizeof *exits);
}

int martlet_clone(const char *ticket, int wait, struct martlet_exits *failed) {
    unsigned processes = 0;
    make_empty(failed);
    fflush(NULL); /* what is written but not yet out would come out once from each clone */
    struct call *call = new_call_of_ticket("clone", ticket);
    if (call == NULL)
        return -1;
    put(call, wait ? ",\"wait\":true" : ",\"wait\":false");
    int id = make(call) < 0 ? -1 : cloned(call, failed, &processes);
    free(call);
    return id > 0 ? start((unsigned)id, processes) : id;
}

int martlet_exit(int status, const void *data, size_t length) {
    if (length > MARTLET_DATA_BYTES)
        return fail(MARTLET_INVALID,
                    "%zu bytes of data are more than the %d that a clone can hand over; write them where its parent can "
                    "read them",
                    length, MARTLET_DATA_BYTES);
    int id = martlet_vmid();
    if (id == 0)
        return fail(MARTLET_INVALID, "only a clone can exit; this VM is nobody's clone by such a call");
    if (id < 0)
        return -1;
    fflush(NULL);
    if (end_process((unsigned)id, status, data, length) < 0)
        return -1;
    _exit(status & 0xff);
}

int martlet_join(const char *ticket, struct martlet_exits *exits) {
    int done;
    make_empty(exits);
    for (;;) {
        struct call *call = new_call_of_ticket("next_exit", ticket);
        if (call == NULL) {
            martlet_exits_free(exits);
            return -1;
        }
        put(call, ",\"seen\":");
        put_number(call, (long long)exits->count);
        done = persist(call);
        int over = done == 0 && answered(call, "\"over\"");
        if (done == 0 && !over)
            done = get_exited(call, exits);
        free(call);
        if (done < 0) {
            martlet_exits_free(exits);
            return -1;
        }
        if (over)
            break;
    }
    /* What was asked for is known. A ticket that stays is the host's to clear away. */
    martlet_kill(ticket);
    return 0;
}

int martlet_kill(const char *ticket) {
    unsigned clones = 0;
    struct call *call = new_call_of_ticket("kill", ticket);
    if (call == NULL)
        return -1;
    int done = persist(call);
    if (done == 0 && (!answered(call, "\"killed\"") || get_unsigned(call->ok, "\"clones\"", &clones) < 0))
        done = unexpected();
    free(call);
    return done < 0 ? -1 : (int)clones;
}

int martlet_checkpoint(char checkpoint[MARTLET_NAME_BYTES]) {
    unsigned processes = 0;
    fflush(NULL);
    checkpoint[0] = '\0';
    struct call *call = new_call("checkpoint");
    if (call == NULL)
        return -1;
    int id = make(call);
    if (id == 0 && answered(call, "\"checkpoint\""))
        id = get_name(call->ok, "\"checkpoint\"", checkpoint);
    else if (id == 0 && (id = cloned(call, NULL, &processes)) == 0)
        id = unexpected();
    free(call);
    return id > 0 ? start((unsigned)id, processes) : id;
}

int martlet_create_clones(const char *checkpoint, const char *ticket, int wait, struct martlet_exits *failed) {
    unsigned processes = 0;
    make_empty(failed);
    struct call *call = new_call_of_ticket("create_clones", ticket);
    if (call == NULL)
        return -1;
    put(call, ",\"checkpoint\":");
    put_string(call, checkpoint);
    put(call, wait ? ",\"wait\":true" : ",\"wait\":false");
    int id = make(call) < 0 ? -1 : cloned(call, failed, &processes);
    free(call);
    if (id > 0 && failed != NULL)
        martlet_exits_free(failed);
    return id > 0 ? unexpected() : id;
}

int martlet_vmid(void) {
    struct martlet_family family;
    if (own_id != 0)
        return (int)own_id;
    return martlet_family(&family) < 0 ? -1 : (int)family.id;
}

int martlet_family(struct martlet_family *family) {
    struct call *call = new_call("me");
    if (call == NULL)
        return -1;
    int done = persist(call);
    if (done == 0 && (!answered(call, "\"me\"") || get_unsigned(call->ok, "\"id\"", &family->id) < 0 ||
                      get_unsigned(call->ok, "\"size\"", &family->size) < 0))
        done = unexpected();
    if (done == 0 && (get_name(call->ok, "\"family\"", family->family) < 0 || get_name(call->ok, "\"name\"", family->name) < 0))
        done = -1;
    free(call);
    return done;
}
