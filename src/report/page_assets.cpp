#include "report/page_assets.hpp"

namespace attnbench {

// Colours: text on its ground has a contrast of at least 4.5 in both themes; the eight of series keep 3
// against the ground.
std::string_view page_style() {
  return R"css(
:root{color-scheme:light;--bg:#fbfbfa;--panel:#fff;--ink:#1b1f24;--soft:#59636e;--line:#d5d9de;--grid:#e8eaed;
--accent:#1f5fbf;--good:#16733c;--good-bg:#e0f3e6;--warn:#855800;--warn-bg:#fbf0d3;--bad:#b3261e;--bad-bg:#fbe5e3;
--c0:#2563c9;--c1:#c2570c;--c2:#1a8a5a;--c3:#b8326b;--c4:#7a46c2;--c5:#97770a;--c6:#0b8199;--c7:#6a7078}
:root[data-theme=dark]{color-scheme:dark;--bg:#14171b;--panel:#1b1f25;--ink:#e6e9ed;--soft:#a0a9b4;--line:#3a424c;
--grid:#2a3038;--accent:#7fb0ff;--good:#6fd48f;--good-bg:#17361f;--warn:#e8bd58;--warn-bg:#3a2f12;--bad:#ff9a92;
--bad-bg:#46201d;--c0:#6ea8ff;--c1:#ff9a52;--c2:#54cf97;--c3:#ff7fb0;--c4:#bd97ff;--c5:#dcbc4a;--c6:#52cbe4;
--c7:#a9b1ba}
@media (prefers-color-scheme:dark){:root:not([data-theme=light]){color-scheme:dark;--bg:#14171b;--panel:#1b1f25;
--ink:#e6e9ed;--soft:#a0a9b4;--line:#3a424c;--grid:#2a3038;--accent:#7fb0ff;--good:#6fd48f;--good-bg:#17361f;
--warn:#e8bd58;--warn-bg:#3a2f12;--bad:#ff9a92;--bad-bg:#46201d;--c0:#6ea8ff;--c1:#ff9a52;--c2:#54cf97;--c3:#ff7fb0;
--c4:#bd97ff;--c5:#dcbc4a;--c6:#52cbe4;--c7:#a9b1ba}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-padding-top:3.2rem}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI","Noto Sans",
"DejaVu Sans",sans-serif;overflow-wrap:break-word}
.page{max-width:1240px;margin:0 auto;padding:0 16px 48px}
a{color:var(--accent)}
a:focus-visible,button:focus-visible,input:focus-visible,select:focus-visible,summary:focus-visible,
[tabindex]:focus-visible{outline:2px solid var(--accent);outline-offset:2px;border-radius:3px}
.skip{position:absolute;left:-999px}.skip:focus{left:8px;top:8px;background:var(--panel);padding:6px 10px;z-index:9}
header{padding:20px 0 8px}
h1{font-size:1.5rem;line-height:1.25;margin:0}
h2{font-size:1.15rem;margin:0 0 10px}h3{font-size:1rem;margin:18px 0 8px}
.crumbs{font-size:.87rem;color:var(--soft);margin-bottom:6px}
.subtitle{color:var(--soft);margin:4px 0 0}
nav.bar{position:sticky;top:0;z-index:5;background:var(--bg);border-bottom:1px solid var(--line);display:flex;
gap:2px 16px;align-items:center;padding:8px 0;margin-bottom:18px;overflow-x:auto;white-space:nowrap;font-size:.9rem}
nav.bar a{text-decoration:none;padding:2px 0}nav.bar a:hover{text-decoration:underline}
nav.bar .theme{margin-left:auto}
button,input,select{font:inherit;color:inherit;background:var(--panel);border:1px solid var(--line);border-radius:6px;
padding:4px 10px}
button{cursor:pointer}button:hover{border-color:var(--soft)}
section{margin:0 0 30px}
.panel,.tile,figure{background:var(--panel);border:1px solid var(--line);border-radius:8px}
.panel{padding:14px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,150px),1fr));gap:10px;margin:0 0 26px}
.tile{padding:10px 14px}.tile b{display:block;font-size:1.35rem;line-height:1.3;font-variant-numeric:tabular-nums}
.tile span{color:var(--soft);font-size:.85rem}
.tile.good b{color:var(--good)}.tile.bad b{color:var(--bad)}.tile.warn b{color:var(--warn)}
.charts{columns:440px 2;column-gap:14px}.charts figure{break-inside:avoid;
margin-bottom:14px}.charts figure.wide{column-span:all}
figure{margin:0;padding:12px 14px;min-width:0}
figcaption{font-weight:600;margin-bottom:6px}
figure p{margin:8px 0 0;color:var(--soft);font-size:.87rem}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:2px 16px;margin:6px 0 0;padding:0;font-size:.87rem}
.legend li{min-width:0;overflow-wrap:anywhere}
.key{width:28px;height:14px;vertical-align:-2px;margin-right:6px}
.chart{display:block;width:100%;height:auto;max-width:640px;margin:0 auto;overflow:hidden}
figure.wide .chart{max-width:none}.narrow-only{display:none}
.chart text{font-size:13px;fill:var(--ink);unicode-bidi:isolate}
.chart .tick,.chart .note,.chart .axis-title{fill:var(--soft)}

.chart .note,.chart .row-label,.chart .row-value{paint-order:stroke;stroke:var(--panel);stroke-width:3px;stroke-linejoin:round}
.grid{stroke:var(--grid);fill:none}.frame{stroke:var(--soft);fill:none}
.s0{--c:var(--c0)}.s1{--c:var(--c1)}.s2{--c:var(--c2)}.s3{--c:var(--c3)}.s4{--c:var(--c4)}.s5{--c:var(--c5)}
.s6{--c:var(--c6)}.s7{--c:var(--c7)}.good{--c:var(--good)}.bad{--c:var(--bad)}.warn{--c:var(--warn)}
.plain{--c:var(--c7)}
.line{stroke:var(--c);fill:none;stroke-width:1.8;stroke-linejoin:round}.mark{fill:var(--c);stroke:var(--panel);
stroke-width:.8}.band{fill:var(--c);opacity:.18}.whisker{stroke:var(--c,var(--ink));fill:none;stroke-width:1.2}
.bar{fill:var(--c)}.bar.pale{fill-opacity:.5}.bar.paler{fill-opacity:.25}.bar~.bar{stroke:var(--panel)}.chart>.whisker{stroke:var(--ink);stroke-width:1.5}
.heat{fill:var(--c0)}.heat.none{fill:none}
.box{fill:var(--c);opacity:.45}.median{stroke:var(--ink);stroke-width:2.2;fill:none}
.roof{stroke:var(--ink);stroke-width:1.6;fill:none}.roof2{stroke:var(--soft);stroke-dasharray:5 4;fill:none}
.fit{stroke:var(--soft);stroke-dasharray:2 3;fill:none}.level{stroke:var(--ink);stroke-width:1.6;stroke-dasharray:7 3;
fill:none}
.rule path{stroke:var(--soft);stroke-dasharray:4 3;fill:none}.change path{stroke:var(--bad);stroke-width:1.8;fill:none}
.change.faster path{stroke:var(--good)}.moved path{stroke:var(--warn);stroke-dasharray:2 3;stroke-width:1.6;fill:none}
.tools{display:none;gap:8px 12px;flex-wrap:wrap;align-items:center;margin-bottom:10px;font-size:.9rem}
.js .tools{display:flex}.tools input{min-width:0;flex:1 1 180px;max-width:360px}
.scroll{overflow-x:auto;border:1px solid var(--line);border-radius:8px;background:var(--panel)}
table{border-collapse:collapse;width:100%;font-size:.9rem}
th,td{padding:6px 10px;text-align:left;border-bottom:1px solid var(--grid);white-space:nowrap;vertical-align:top}
td.long{white-space:normal;min-width:16rem}td.wrap{white-space:normal;overflow-wrap:anywhere}
th.r,td.r{text-align:right;font-variant-numeric:tabular-nums}
thead th{background:var(--panel);border-bottom:1px solid var(--line);font-weight:600}
tbody tr:last-child>*{border-bottom:0}tbody tr:hover{background:var(--grid)}
tbody th{font-weight:500}
th button{all:unset;cursor:pointer;font-weight:600}th button:hover{text-decoration:underline}
th button:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
th button::after{content:"";display:inline-block;width:1em;text-align:center;color:var(--soft)}
th[aria-sort=ascending] button::after{content:"\25B4"}th[aria-sort=descending] button::after{content:"\25BE"}
th.r button::before{content:"";display:inline-block;width:1em;text-align:center;color:var(--soft)}
th.r button::after,th.r[aria-sort] button::after{content:none}
th.r[aria-sort=ascending] button::before{content:"\25B4"}th.r[aria-sort=descending] button::before{content:"\25BE"}
tr.m-warn td,tr.m-warn th{color:var(--warn)}tr.m-bad td,tr.m-bad th{color:var(--bad)}
.badge{display:inline-block;padding:0 8px;border-radius:10px;font-size:.82rem;line-height:1.6;background:var(--grid);
color:var(--ink);white-space:nowrap}
.badge.good{background:var(--good-bg);color:var(--good)}.badge.bad{background:var(--bad-bg);color:var(--bad)}
.badge.warn{background:var(--warn-bg);color:var(--warn)}
details{margin-top:10px}summary{cursor:pointer}
pre{overflow-x:auto;background:var(--panel);border:1px solid var(--line);border-radius:8px;padding:12px;font-size:.84rem;
unicode-bidi:plaintext}
ul.remarks{padding-left:1.2em;margin:0}ul.remarks li{margin:3px 0;overflow-wrap:anywhere}
.spark{width:130px;height:26px;vertical-align:middle}.spark path{stroke:var(--c0);fill:none;stroke-width:1.6}
footer{color:var(--soft);font-size:.85rem;border-top:1px solid var(--line);padding-top:12px}
.none{color:var(--soft)}
@media (max-width:640px){.page{padding:0 12px 32px}h1{font-size:1.25rem}figure{padding:10px 8px}.chart text{font-size:15px}
figure p,.legend{font-size:.8rem}
.wide-only{display:none}.narrow-only{display:block}th,td{padding:6px 8px}
tbody th{max-width:46vw;white-space:normal;overflow-wrap:anywhere;min-width:7rem}}
@media print{nav.bar,.tools{display:none!important}figure,table{break-inside:avoid}}
)css";
}

std::string_view page_script() {
  return R"js(
"use strict";
(function(){
var root=document.documentElement;root.classList.add("js");
function stored(v){try{if(v===undefined)return localStorage.getItem("attnbench-theme");
if(v)localStorage.setItem("attnbench-theme",v);else localStorage.removeItem("attnbench-theme");}catch(e){}return null;}
function theme(v){if(v)root.setAttribute("data-theme",v);else root.removeAttribute("data-theme");}
theme(stored());
function cells(row){return row.children;}
function key(row,i){var c=cells(row)[i];var v=c.getAttribute("data-v");return v===null?c.textContent:v===""?null:+v;}
function sort(table,i,button){
var th=button.closest("th"),up=th.getAttribute("aria-sort")!=="ascending";
table.querySelectorAll("thead th").forEach(function(t){t.removeAttribute("aria-sort");});
th.setAttribute("aria-sort",up?"ascending":"descending");
var body=table.tBodies[0],rows=Array.prototype.slice.call(body.rows);
rows.sort(function(a,b){var x=key(a,i),y=key(b,i);
if(x===null||x==="")return y===null||y===""?0:1;if(y===null||y==="")return -1;
var d=typeof x==="number"&&typeof y==="number"?x-y:String(x).localeCompare(String(y),undefined,{numeric:true});
return up?d:-d;});
rows.forEach(function(r){body.appendChild(r);});}
function filter(tools){
var table=document.getElementById(tools.getAttribute("data-for")),words=[],wanted="";
var field=tools.querySelector("input"),choice=tools.querySelector("select"),count=tools.querySelector("[data-count]");
if(field)words=field.value.toLowerCase().split(/\s+/).filter(Boolean);
if(choice)wanted=choice.value;
var shown=0,rows=table.tBodies[0].rows;
for(var i=0;i<rows.length;i++){var text=rows[i].textContent.toLowerCase();
var ok=words.every(function(w){return text.indexOf(w)>=0;})&&(!wanted||rows[i].getAttribute("data-kind")===wanted);
rows[i].hidden=!ok;if(ok)shown++;}
if(count)count.textContent=shown+" of "+rows.length;}
document.addEventListener("DOMContentLoaded",function(){
var toggle=document.getElementById("theme");
if(toggle){toggle.hidden=false;toggle.addEventListener("click",function(){
var dark=root.getAttribute("data-theme")?root.getAttribute("data-theme")==="dark":
matchMedia("(prefers-color-scheme: dark)").matches;
theme(dark?"light":"dark");stored(dark?"light":"dark");});}
document.querySelectorAll("table.sortable").forEach(function(table){
table.querySelectorAll("thead th").forEach(function(th,i){
var b=document.createElement("button");b.type="button";while(th.firstChild)b.appendChild(th.firstChild);
th.appendChild(b);b.addEventListener("click",function(){sort(table,i,b);});});});
document.querySelectorAll(".tools").forEach(function(tools){
tools.addEventListener("input",function(){filter(tools);});filter(tools);});
document.addEventListener("keydown",function(e){
if(e.key!=="/"||e.ctrlKey||e.metaKey||e.altKey||/^(INPUT|SELECT|TEXTAREA)$/.test(e.target.tagName))return;
var field=document.querySelector(".tools input");if(field){e.preventDefault();field.focus();}});
});
})();
)js";
}

}  // namespace attnbench
