// A glass ball goes round a checkered column.
#version 3.7;
global_settings { assumed_gamma 1.0 }
camera { location <0, 2, -5> look_at <0, 1, 0> }
light_source { <4, 6, -4> color rgb 1 }
plane { y, 0 pigment { checker color rgb 1 color rgb 0.3 } }
cylinder { <0, 0, 0>, <0, 2, 0>, 0.5 pigment { checker color rgb <1, 0.4, 0> color rgb <0, 0.3, 1> scale 0.4 } }
sphere {
  <1.6 * sin(2 * pi * clock), 0.7, 1.6 * cos(2 * pi * clock)>, 0.7
  pigment { color rgbf <0.9, 1, 0.95, 0.9> }
  finish { reflection 0.1 specular 0.6 }
  interior { ior 1.5 }
}
