// All ops and the table of them, compiled once for each instruction set, into a namespace of its own.
//
// setup.py gives each file that includes this one its flags: -DEF_NS (the namespace), -DEF_ISA (the width of its
// vectors in bits) and the instructions that the compiler may use. The ops instantiate no std:: template: that would
// make weak symbols, of which the linker could keep those compiled for a newer CPU.
#include "../ops.h"

namespace ef::EF_NS {

#define OP(name, parameters) void name parameters;
#include "../ops.inc"
#undef OP

}  // namespace ef::EF_NS

#include "../adamw.cpp"
#include "../attention.cpp"
#include "../attention_block.cpp"
#include "../decode_attention.cpp"
#include "../decoder_step.cpp"
#include "../discriminator_head.cpp"
#include "../dropout_add_layer_norm.cpp"
#include "../embedding.cpp"
#include "../encoder.cpp"
#include "../ffn_block.cpp"
#include "../generator_head.cpp"
#include "../linear.cpp"
#include "../masking.cpp"
#include "../philox.cpp"
#include "../top_k_words.cpp"
#include "../vector.cpp"

namespace ef::EF_NS {

const Ops ops = {
#define OP(name, parameters) name,
#include "../ops.inc"
#undef OP
};

}  // namespace ef::EF_NS
