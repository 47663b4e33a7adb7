// What the bindings of all ops share: tensors of torch (tensor.h), checks and views of arguments (arguments.h), how a
// kernel is run (run_kernel.h), and the table by which it is registered (kernel_table.h).
#pragma once

#include "arguments.h"
#include "kernel_table.h"
#include "run_kernel.h"
#include "tensor.h"
