/* Every status has its own sentence; anything else has one too. */
#include <string.h>

#include "check.h"
#include "fastlstm.h"

int main(void)
{
    static const fl_status all[] = {FL_OK,
                                    FL_ERR_ARGUMENT,
                                    FL_ERR_NOMEM,
                                    FL_ERR_OVERFLOW,
                                    FL_ERR_UNKNOWN_CELL,
                                    FL_ERR_UNKNOWN_ISA,
                                    FL_ERR_ISA_UNAVAILABLE,
                                    FL_ERR_TAPE};
    enum { COUNT = sizeof all / sizeof all[0] };
    const char *unknown = fl_status_string((fl_status)-1000);
    CHECK(unknown && *unknown);
    CHECK_EQUAL(FL_OK, 0);
    for (int i = 0; i < COUNT; i++) {
        const char *sentence = fl_status_string(all[i]);
        CHECK(sentence && *sentence);
        CHECK(strcmp(sentence, unknown) != 0);
        CHECK(i == 0 || all[i] < 0);
        for (int j = 0; j < i; j++)
            CHECK(strcmp(sentence, fl_status_string(all[j])) != 0);
    }
    return check_report();
}
