/* Normalization of rows by themselves: RMS and layer norm (where no Linear takes it in). */
#ifndef MIAOTUI_NORM_H
#define MIAOTUI_NORM_H

#include "base.h"
#include "linear.h"

/* y = norm(x) of `columns` floats; y may be x. scale, bias: [columns] or NULL.
 *
 * INLINE void norm_row(norm_kind kind, const float *x, float *y, int64_t columns, const float *scale,
 *                      const float *bias, float epsilon);
 */

#endif
